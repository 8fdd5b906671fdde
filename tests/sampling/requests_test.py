import dataclasses
import hashlib
import json
import pathlib

import pytest
from PIL import Image

from ovi_jax.sampling import requests

SIZE = {"height": 720, "width": 720, "area": 720 * 720}


@pytest.fixture
def folder(tmp_path):
  Image.new("RGB", (64, 32)).save(tmp_path / "wide.png")
  (tmp_path / "broken.png").write_text("no picture")
  return tmp_path


def _file(folder, text, name="list.csv"):
  path = folder / name
  path.write_bytes(text.encode() if isinstance(text, str) else text)
  return path


def test_each_row_becomes_a_request(folder):
  text = (
    "\ufefftext_prompt , image_path,note\r\n"
    '"A man, ""old"",\nsays <S>hi<E>",wide.png,1\r\n\r\n'
    "A dog,,\r\nA cat\r\n"
  )
  first, second, third = requests.from_file(_file(folder, text))
  assert first.prompt == 'A man, "old",\nsays <S>hi<E>'
  assert first.image == folder / "wide.png"
  assert (second.prompt, second.image, second.index) == ("A dog", None, 2)
  assert (third.prompt, third.image, third.index) == ("A cat", None, 3)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_tabs_separate_a_tsv(folder, newline):
  lines = ["image_path\ttext_prompt", "\ta, b", "wide.png\tc"]
  path = _file(folder, newline.join(lines), "list.TSV")
  assert [r.prompt for r in requests.from_file(path)] == ["a, b", "c"]


def test_a_picture_stored_under_another_unicode_form_is_found(folder):
  stored = folder / "Ba\u0308r.png"  # as macOS writes it
  Image.new("RGB", (64, 32)).save(stored)
  text = "text_prompt,image_path\na,B\u00e4r.png\n"
  assert requests.from_file(_file(folder, text))[0].image == stored
  (given,) = requests.from_prompt("a", folder / "B\u00e4r.png")
  assert given.image == stored


@pytest.mark.parametrize(
  "written",
  ["~/a/wide.png", "a\\\\wide.png", '"""a\\\\wide.png"""', "'~/a/wide.png'"],
)
def test_paths_of_shells_and_of_windows_are_understood(
  folder, monkeypatch, written
):
  monkeypatch.setenv("HOME", str(folder))
  (folder / "a").mkdir()
  (folder / "wide.png").rename(folder / "a" / "wide.png")
  path = _file(folder, f"text_prompt,image_path\nx,{written}\n")
  assert requests.from_file(path)[0].image == folder / "a" / "wide.png"
  path = _file(folder, "text_prompt,image_path\nx,~/a/none.png\n")
  with pytest.raises(ValueError, match=f"is missing: {folder}/a/none.png;"):
    requests.from_file(path)


def test_the_literal_name_of_a_file_comes_first(folder):
  Image.new("RGB", (8, 8)).save(folder / "a\\wide.png")
  (folder / "a").mkdir()
  (folder / "wide.png").rename(folder / "a" / "wide.png")
  path = _file(folder, "text_prompt,image_path\nx,a\\wide.png\n")
  assert requests.from_file(path)[0].image == folder / "a\\wide.png"


def test_the_current_folder_comes_first(folder, monkeypatch, tmp_path_factory):
  here = tmp_path_factory.mktemp("here")
  path = _file(folder, "text_prompt,image_path\na,wide.png\n")
  monkeypatch.chdir(here)
  assert requests.from_file(path)[0].image == folder / "wide.png"
  Image.new("RGB", (32, 32)).save("wide.png")
  assert requests.from_file(path)[0].image == pathlib.Path("wide.png")


@pytest.mark.parametrize(
  "text, name, message",
  [
    (None, "list.csv", "No such file"),
    ("", "list.csv", "is empty"),
    ("text_prompt\n", "list.csv", "header but no rows"),
    ("prompt\na\n", "list.csv", r"needs one column text_prompt.*'prompt'"),
    ("text_prompt\na\n", "list.txt", r"ends in '.txt'; expected .csv or"),
    ("text_prompt\na, b\n", "list.csv", r"row 1 \(line 2\): 2 cells for 1"),
  ],
)
def test_invalid_files_are_named(folder, text, name, message):
  path = folder / name if text is None else _file(folder, text, name)
  with pytest.raises(ValueError, match=message) as error:
    requests.from_file(path)
  assert str(path) in str(error.value)


def test_every_bad_row_is_listed(folder):
  text = "text_prompt,image_path\n,x.png\na,none.png\nb,\n,\n &nbsp; ,x\n"
  with pytest.raises(ValueError, match=r"list\.csv") as error:
    requests.from_file(_file(folder, text))
  _, *lines = str(error.value).splitlines()
  assert [line.split(":")[0].strip() for line in lines] == [
    "row 1 (line 2)",
    "row 2 (line 3)",
    "row 4 (line 6)",
  ]
  assert "prompt is empty" in lines[0] and "none.png" in lines[1]
  path = _file(folder, "image_path,text_prompt\nwide.png\n")
  with pytest.raises(
    ValueError, match=r"row 1 \(line 2\): the prompt is empty"
  ):
    requests.from_file(path)


def test_the_mode_is_checked(folder):
  path = _file(folder, "text_prompt,image_path\na,wide.png\nb,\nc,none.png\n")
  assert all(r.image is None for r in requests.from_file(path, "t2v"))
  with pytest.raises(ValueError, match=r"row 2 \(line 3\): mode i2v needs"):
    requests.from_file(path, "i2v")
  for call in (requests.from_file, requests.from_prompt):
    with pytest.raises(ValueError, match="choose from auto, t2v, i2v"):
      call(str(path), mode="t2i2v")


def test_a_single_prompt_is_one_request(folder):
  (request,) = requests.from_prompt("a", folder / "wide.png")
  assert request.image == folder / "wide.png" and request.place == ""
  assert requests.from_prompt("a", "none", "t2v")[0].image is None
  with pytest.raises(ValueError, match="the prompt is empty"):
    requests.from_prompt(" \n")
  with pytest.raises(ValueError, match=r"image is missing: .*none"):
    requests.from_prompt("a", folder / "none")
  with pytest.raises(ValueError, match="mode i2v needs an image"):
    requests.from_prompt("a", mode="i2v")


def test_repetitions_have_their_own_seed_size_and_name(folder):
  given = [
    *requests.from_prompt("A dog"),
    *requests.from_prompt("A cat", folder / "wide.png"),
  ]
  expanded = requests.expand(given, 2, 100, **SIZE)
  assert [(r.seed, r.size) for r in expanded] == [
    (100, (704, 704)),
    (101, (704, 704)),
    (100, (512, 1024)),
    (101, (512, 1024)),
  ]
  digest = _digest(["A dog", None])
  assert [r.stem for r in expanded[:2]] == [
    f"A_dog_{digest}_704x704_100",
    f"A_dog_{digest}_704x704_101",
  ]
  content = hashlib.sha256((folder / "wide.png").read_bytes()).hexdigest()
  digest = _digest(["A cat", content])
  assert expanded[2].stem == f"A_cat_{digest}_512x1024_100"


def _digest(content):
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:10]


def test_a_row_may_have_a_seed(folder):
  text = "text_prompt,seed\nA dog,7\nA cat,\nA fox,4294967295\n"
  given = requests.from_file(_file(folder, text))
  seeds = [r.seed for r in requests.expand(given, 2, 100, **SIZE)]
  assert seeds == [7, 8, 100, 101, 4294967295, 0]
  for wrong in ("-1", "4294967296", "x", "1.5", "9" * 30, "9" * 9000):
    path = _file(folder, f"text_prompt,seed\nA dog,1\nA cat,{wrong}\n")
    with pytest.raises(
      ValueError, match=f"line 3.: expected a seed.*{wrong[:30]}"
    ):
      requests.from_file(path)


def test_numbers_of_spreadsheets_are_read(folder):
  text = "text_prompt;seed;seconds\nA dog;7.0;2,5\nA cat;;3\n"
  dog, cat = requests.from_file(_file(folder, text))
  assert (dog.seed, dog.seconds) == (7, 2.5)
  assert (cat.seed, cat.seconds) == (None, 3)
  for wrong in ("2,5,1", "1.000,5", "2s", "00:02"):
    path = _file(folder, f"text_prompt;seconds\nA dog;{wrong}\n")
    with pytest.raises(ValueError, match="seconds: expected a number of sec"):
      requests.from_file(path)


SAME_START = "A red fox runs through tall grass beside a quiet river and"
ROWS = (
  f"{SAME_START} barks,,",
  f"{SAME_START} sleeps,,",
  "A dog,,",
  "a  DOG!,,",
  "A cat,wide.png,",
  "A cat,tall.png,",
  "A cat,,",
  "A cat,,8",
  "犬" * 60 + ",,",
)


@pytest.fixture
def rows_of(folder):
  Image.new("RGB", (64, 32), "red").save(folder / "tall.png")

  def read(rows):
    path = _file(folder, "\n".join(["text_prompt,image_path,seed", *rows]))
    given = requests.from_file(path)
    return requests.expand(given, 1, 7, **SIZE)

  return read


def test_a_file_name_depends_on_its_row_only(rows_of):
  alone = {row: rows_of([row])[0].stem for row in ROWS}
  for rows in (ROWS, ROWS[::-1], ROWS[3:], (*ROWS[:1], "A new row,,", ROWS[1])):
    made = rows_of(rows)
    assert [r.stem for r in made] == [
      alone.get(row, r.stem) for row, r in zip(rows, made, strict=True)
    ]
  # Different as well where a file system ignores case.
  assert len({stem.casefold() for stem in alone.values()}) == len(ROWS)


def test_images_are_identified_by_content(rows_of, folder):
  (before,) = rows_of(["A cat,wide.png,"])
  (folder / "wide.png").rename(folder / "moved.png")
  (moved,) = rows_of(["A cat,moved.png,"])
  assert moved.stem == before.stem


def test_duplicate_rows_are_merged(rows_of):
  made = rows_of(["A cat,,", "A dog,,", "A cat,,7", "A cat,,8"])
  assert [(r.index, r.seed) for r in made] == [(1, 7), (2, 7), (4, 8)]


def test_file_names_fit_any_file_system(rows_of):
  wide = "\U00020000" * 60 + ",,4294967295"
  for made in rows_of([*ROWS, wide]):
    # As temporary files are called: `.NAME.json.PROCESS.part`.
    assert len(f".{made.stem}.json.4194304.part".encode()) <= 255


@pytest.mark.parametrize(
  "image, message",
  [
    ("x" * 300, r"300 characters\): File name too long"),
    ("x/" * 3000, "File name too long"),
    ("a\x1b[2J.png", r"is missing: .*a\\x1b\[2J\.png"),
  ],
)
def test_impossible_paths_are_refused(folder, image, message):
  path = _file(folder, f"text_prompt,image_path\na,{image}\n")
  with pytest.raises(ValueError, match=message) as error:
    requests.from_file(path)
  assert "row 1 (line 2): the image" in str(error.value)
  assert "\x1b" not in str(error.value)
  with pytest.raises(ValueError, match=message):
    requests.from_prompt("a", image)


def test_nul_in_a_path_is_refused(folder):
  with pytest.raises(ValueError, match="path holds a NUL character"):
    requests.from_prompt("a", "a\0b.png")
  path = _file(folder, "text_prompt,image_path\na,x\0y.png\n")
  with pytest.raises(ValueError, match=r"NUL character \(line 2\)"):
    requests.from_file(path)
  for name in ("x" * 300 + ".csv", "a\0b.csv"):
    with pytest.raises(ValueError, match="too long|no name of a file"):
      requests.from_file(name)


def test_a_table_of_a_spreadsheet_is_read(folder):
  header, row = (
    "Text Prompt;Image Path;Seed",
    "Ein Hund, zwei Katzen;wide.png;7",
  )
  text = f"{header}\r\n{row}\r\n;;\r\n"
  for data in (
    text.encode("utf-8-sig"),
    text.replace(";", "\t").encode("utf-16"),
  ):
    (request,) = requests.from_file(_file(folder, data))
    assert request.prompt == "Ein Hund, zwei Katzen"
    assert (request.image, request.seed) == (folder / "wide.png", 7)


def test_expanding_refuses_invalid_requests(folder):
  given = requests.from_prompt("a", folder / "broken.png")
  with pytest.raises(ValueError, match=r"^[^\n]*broken\.png") as raised:
    requests.expand(given, 1, 0, **SIZE)
  assert "row" not in str(raised.value)  # of a table
  several = [dataclasses.replace(given[0], index=n) for n in (1, 2)]
  listed = r"(?s)^files that cannot be used:\n  row 1: .*\n  row 2: .*broken"
  with pytest.raises(ValueError, match=listed):
    requests.expand(several, 1, 0, **SIZE)
  with pytest.raises(ValueError, match="samples_per_prompt must be at least"):
    requests.expand(requests.from_prompt("a"), 0, 0, **SIZE)
  with pytest.raises(ValueError, match="must be positive"):
    requests.expand(requests.from_prompt("a"), 1, 0, **{**SIZE, "height": 0})
  with pytest.raises(ValueError, match="at most 8 to 1, got 10x4000"):
    wish = {**SIZE, "height": 10, "width": 4000}
    requests.expand(requests.from_prompt("a"), 1, 0, **wish)


def test_at_most_ten_invalid_images_are_named(folder):
  Image.new("L", (4000, 10)).save(folder / "long.png")
  Image.new("L", (40, 10)).save(folder / "x.gif")
  (given,) = requests.from_prompt("a", folder / "long.png")
  with pytest.raises(ValueError, match=r"long\.png: .*8 to 1, got 10x4000"):
    requests.expand([given], 1, 0, **SIZE)
  copies = [folder / f"{n}.png" for n in range(14)]
  for path in copies:
    path.write_bytes((folder / "x.gif").read_bytes())
  given = [dataclasses.replace(given, image=path) for path in copies]
  with pytest.raises(ValueError) as caught:
    requests.expand(given, 1, 0, **SIZE)
  assert "9.png: found a GIF picture; expected a PNG" in str(caught.value)
  assert "10.png" not in str(caught.value)
  assert str(caught.value).endswith("and 4 more")


def test_changes_of_an_image_are_noted(folder):
  Image.new("RGBA", (40, 40), (9, 9, 9, 0)).save(folder / "clear.png")
  given = [
    *requests.from_prompt("a", folder / "clear.png"),
    *requests.from_prompt("b", folder / "wide.png"),
    *requests.from_prompt("c"),
  ]
  noted = [r.notes for r in requests.expand(given, 1, 0, **SIZE)]
  assert noted == [
    ("image: transparent pixels are composited over white",),
    (),
    (),
  ]


@pytest.mark.parametrize("locale", ["ascii", "latin-1", "utf-8"])
def test_a_typed_prompt_is_utf_8_whatever_the_locale(locale, monkeypatch):
  def encoded(text: str) -> bytes:
    return text.encode(locale, "surrogateescape")

  monkeypatch.setattr("os.fsencode", encoded)
  typed = "Eis \u011b".encode().decode(locale, "surrogateescape")
  (request,) = requests.from_flags(typed, "", "", "auto")
  assert request.prompt == "Eis \u011b"
  (request,) = requests.from_flags("Sch\xf6n", "", "", "auto")
  assert request.prompt == "Sch\xf6n"
