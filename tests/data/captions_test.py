"""Caption tables: matching rows to files, and cleaning of text."""

import pathlib

import pytest

from ovi_jax.data import captions


def row(path: str) -> captions.Row:
  return captions.Row(place="row 1", path=captions.normalize(path), caption="x")


@pytest.mark.parametrize(
  "path, wanted",
  [
    ("a.mp4", ["a.mp4"]),
    ("./a.mp4", ["a.mp4"]),
    ("sub/a.mp4", ["sub/a.mp4"]),
    (".\\sub\\a.mp4", ["sub/a.mp4"]),
    ("SUB/A.mp4", ["sub/a.mp4"]),
    ("b.mp4", ["sub/b.mp4"]),
    ("C:\\Users\\me\\clips\\sub\\a.mp4", ["sub/a.mp4"]),
    ("/home/other/clips/a.mp4", ["a.mp4"]),
    ("clips/a.mp4", []),
    ("c.mp4", ["one/c.mp4", "two/c.mp4"]),
    ("Mu\u0308ller.mp4", ["M\u00fcller.mp4"]),
    ("", []),
    ("missing.mp4", []),
  ],
)
def test_a_row_names_the_file_whose_path_ends_with_it(path, wanted):
  names = [
    "a.mp4",
    "sub/a.mp4",
    "sub/b.mp4",
    "one/c.mp4",
    "two/c.mp4",
    "M\u00fcller.mp4",
  ]
  files = captions.Files.of({name: pathlib.Path(name) for name in names})
  assert files.find(row(path)) == wanted


def test_the_home_folder_and_quotation_marks_in_a_path_are_understood(
  tmp_path, monkeypatch
):
  monkeypatch.setenv("HOME", "/home/me")
  table = tmp_path / "t.csv"
  table.write_text('path,caption\n~/sub/a.mp4,one\n"""C:\\sub\\a.mp4""",two\n')
  first, second = captions.read(table)
  assert first.path == "/home/me/sub/a.mp4" and first.is_absolute
  assert second.path == "C:/sub/a.mp4" and second.is_absolute


@pytest.mark.parametrize("name", ["'Twas the night.mp4", "The dogs'", '7"'])
def test_an_apostrophe_is_a_part_of_a_name(name, tmp_path):
  table = tmp_path / "t.tsv"
  cell = name.replace('"', '""')
  table.write_text(f'path\tcaption\n"{cell}"\tone\n')
  (found,) = captions.read(table)
  files = captions.Files.of({name: pathlib.Path(name)})
  assert found.path == name and files.find(found) == [name]


def test_a_file_takes_the_rows_with_the_longest_matching_suffix(tmp_path):
  table = tmp_path / "t.csv"
  table.write_bytes(
    b"\xef\xbb\xbfpath,caption\r\na.mp4,short\r\nsub\\a.mp4,long\r\n"
    b"sub/a.mp4,other\r\n/abs/a.mp4,absolute\r\n"
  )
  loaded = captions.Table.load(table)

  def found(path: str) -> list[str]:
    return [each.caption for each in loaded.find(path)]

  assert found("/films/sub/a.mp4") == ["long", "other"]
  assert found(f"{tmp_path}/sub/a.mp4") == ["long", "other"]
  assert found("/films/a.mp4") == ["short"]
  assert found("/abs/a.mp4") == ["absolute"]
  assert found("/abs/b.mp4") == []


def test_captions_are_cleaned_and_each_is_kept_once():
  made, notes = captions.prompts(
    ["A  dog\nbarks &amp; runs. <S>Hi<E>", "A dog barks & runs. <S>Hi<E>", " "]
  )
  assert made == ["A dog barks & runs. <S>Hi<E>"] and not notes


def test_tags_out_of_place_are_noted_and_variants_have_their_form():
  _, notes = captions.prompts(["He says <S>hi"])
  assert notes[0] == "<S> (character 9) has no <E> before the end"
  made, _ = captions.prompts(["Rain. <AUDCAP>drops<ENDAUDCAP>"], ["960x960_5s"])
  assert made == ["Rain. Audio: drops"]


def test_rows_without_a_path_or_with_an_unknown_split_are_listed(
  tmp_path,
):
  table = tmp_path / "t.csv"
  table.write_text("path,caption,split\n,x,\na.mp4,x,dev\nb.mp4,x,VAL\n")
  with pytest.raises(ValueError) as raised:
    captions.read(table)
  assert "row 1 (line 2): no path" in str(raised.value)
  assert "row 2 (line 3): split 'dev'; expected train, test" in str(
    raised.value
  )
