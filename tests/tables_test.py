"""Tables and lists in the formats of common tools."""

import os

import hypothesis
import pytest
from hypothesis import strategies

from ovi_jax import tables
from ovi_jax import untrusted

TEXT = 'path,caption,split\r\na.mp4,"A cat, ""old"".",train\r\nb.mp4,犬,\r\n'
CELLS = [
  {"path": "a.mp4", "caption": 'A cat, "old".', "split": "train"},
  {"path": "b.mp4", "caption": "犬", "split": ""},
]


def _read(tmp_path, content, name="t.csv"):
  path = tmp_path / name
  data = content.encode() if isinstance(content, str) else content
  path.write_bytes(data)
  return tables.read_table(
    path, required=("path", "caption"), optional=("split",)
  )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_of_common_tools_are_read(
  tmp_path, encoding, newline
):
  data = TEXT.replace("\r\n", newline).encode(encoding)
  assert [r.cells for r in _read(tmp_path, data)] == CELLS


def test_utf_16_of_either_byte_order_is_read(tmp_path):
  for mark, encoding in (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"):
    rows = _read(tmp_path, mark + TEXT.encode(encoding))
    assert [r.cells for r in rows] == CELLS


@pytest.mark.parametrize(
  "content, name",
  [
    ("path\tcaption\na, b.mp4\tx\n", "t.tsv"),
    ("path\tcaption\na, b.mp4\tx\n", "t.TSV"),
    ("path\tcaption\na, b.mp4\tx\n", "t.csv"),
    ("path;caption\na, b.mp4;x\n", "t.csv"),
    ("sep=;\r\npath;caption\r\na, b.mp4;x\r\n", "t.csv"),
    ("\ufeffSEP=;\r\npath;caption\r\na, b.mp4;x\r\n", "t.csv"),
    ('path,caption\n"a, b.mp4",x\n', "t.tsv"),
  ],
)
def test_the_separator_is_that_of_the_header(tmp_path, content, name):
  (row,) = _read(tmp_path, content, name)
  assert row.cells == {"path": "a, b.mp4", "caption": "x", "split": ""}


@pytest.mark.parametrize(
  "header", [" Path , CAPTION\u00a0,Split", "x,path,caption", "Path,Caption,,"]
)
def test_headers_differ_in_case_spaces_and_other_columns(tmp_path, header):
  line = "1,a,b" if header.startswith("x") else "a,b"
  (row,) = _read(tmp_path, f"{header}\n{line}\n")
  assert row.cells == {"path": "a", "caption": "b", "split": ""}


def test_line_ends_within_cells_are_normalized(tmp_path):
  for newline in ("\n", "\r\n", "\r"):
    text = newline.join(["path,caption", 'a,"b', 'c"', ""])
    (row,) = _read(tmp_path, text)
    assert row.cells["caption"] == "b\nc"


def test_words_of_a_column_name_may_be_joined_in_any_way(tmp_path):
  path = tmp_path / "t.csv"
  for header in ("text_prompt", "Text Prompt", "text-prompt"):
    path.write_text(f"{header}\na\n")
    (row,) = tables.read_table(path, required=("text_prompt",))
    assert row.cells == {"text_prompt": "a"}


def test_empty_rows_are_skipped_and_not_numbered(tmp_path):
  content = '\n,,\npath,caption\n\n  , \na,"b\nc"\n,,,\r\nd,e,,,\n'
  first, second = _read(tmp_path, content)
  assert (first.number, first.line, first.cells["caption"]) == (1, 6, "b\nc")
  assert (second.number, second.line, second.cells["path"]) == (2, 9, "d")
  assert str(second) == "row 2 (line 9)"


@pytest.mark.parametrize(
  "content, name, message",
  [
    ("", "t.csv", "is empty; expected a header with path and caption"),
    (",,\n\n", "t.csv", "is empty"),
    ("path,caption\n,\n", "t.csv", "has a header but no rows"),
    ("path,title\na,b\n", "t.csv", r"one column path and caption.*'title'"),
    ("path,caption,Path\na,b,c\n", "t.csv", "needs one column path"),
    ("path,caption,split,SPLIT\na,b\n", "t.csv", "at most one each of split"),
    ("path,caption\na,b\n", "t.txt", "ends in '.txt'; expected .csv or .tsv"),
    ("path,caption\na,b\n", "t", "ends in 'nothing'"),
    ('path,caption\na,b\n"c\nd\n', "t.csv", r"row 2 \(line 3\) is malformed"),
    ('"path" x,caption\na,b\n', "t.csv", r"the header \(line 1\) is malf"),
    ("path,caption\na," + "b" * 200_000, "t.csv", "131072 characters"),
    (b"path,caption\na,\xe9\n", "t.csv", r"not UTF-8 \(byte 15, line 2\)"),
    (b"path,caption\na,b\0\n", "t.csv", r"NUL character \(line 2\)"),
    ("path,caption\na,b".encode("utf-16-le"), "t.csv", "byte-order mark"),
    (b"\xff\xfea", "t.csv", "is not UTF-16"),
    ("path,caption\na,b,c,d\n", "t.csv", r"row 1 \(line 2\): 4 cells for 2"),
  ],
)
def test_invalid_tables_are_refused(tmp_path, content, name, message):
  with pytest.raises(ValueError, match=message) as error:
    _read(tmp_path, content, name)
  assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
  "name, message",
  [
    ("none.csv", "No such file"),
    ("x" * 300 + ".csv", "File name too long"),
    ("a\0b.csv", "no name of a file"),
    ("folder.csv", "is a folder; expected a file"),
    (".", "is a folder; expected a file"),
    ("zero.csv", "is a device; expected a file"),
    ("pipe.csv", "is a named pipe; expected a file"),
  ],
)
def test_names_that_cannot_be_opened_are_refused(tmp_path, name, message):
  (tmp_path / "folder.csv").mkdir()
  os.mkfifo(tmp_path / "pipe.csv")
  (tmp_path / "zero.csv").symlink_to("/dev/zero")
  with pytest.raises(ValueError, match=message):
    tables.read_table(tmp_path / name, required=("path",))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (
      "a\n{}\n",
      r"row 1 \(line 2\) has a cell of more than 131072 char.*limit$",
    ),
    ("a\n\n1\n{}\n", r"row 2 \(line 4\) has a cell"),
    ("a{}\n1\n", r"the header \(line 1\) has a cell"),
    ('a\n"{}', "131072 characters.*; is a double quote unclosed"),
  ],
)
def test_a_cell_that_is_too_long_is_named(tmp_path, content, message):
  path = tmp_path / "t.csv"
  path.write_text(content.format("x" * 131_073))
  with pytest.raises(ValueError, match=message):
    tables.read_table(path, required=("a",))
  path.write_text("a\n" + "x" * 131_072 + "\n")
  assert len(tables.read_table(path, required=("a",))) == 1


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"PK\x03\x04\xff\0", "is a workbook or another zip file; export"),
    (b"\xd0\xcf\x11\xe0\xff\0", "is a workbook of Excel; export"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
    (b"<!DOCTYPE html><table>", "is a web page: the address needs a login"),
    (b"<HTML lang=en>", "is a web page: the address needs a login"),
    (b"<html>", "is a web page: the address needs a login"),
    (b'{"text_prompt": "A dog"}\n', "is JSON; expected a table, with a head"),
  ],
)
def test_other_files_called_csv_are_named(tmp_path, content, message):
  path = tmp_path / "t.csv"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    tables.read_table(path, required=("a",))


def test_files_are_read_up_to_a_limit(tmp_path, monkeypatch):
  monkeypatch.setattr(tables, "MAX_BYTES", 1 << 20)
  path = tmp_path / "t.csv"
  path.write_bytes(b"path\n" + b"a" * (1 << 20))
  with pytest.raises(ValueError, match="more than 1 MiB"):
    tables.read_table(path, required=("path",))
  with pytest.raises(ValueError, match="more than 1 MiB"):
    tables.read_list(path)


def test_ten_bad_rows_are_listed_and_the_others_counted(tmp_path):
  rows = _read(tmp_path, "path,caption\n" + "a,b\n" * 3 + "c,d\n" * 25)

  def parse(row):
    if row.cells["path"] == "c":
      raise ValueError("no c")
    return row.cells["caption"]

  assert tables.parse_rows("t.csv", rows[:3], parse) == ["b"] * 3
  with pytest.raises(ValueError) as error:
    tables.parse_rows("t.csv", rows, parse)
  first, *lines, last = str(error.value).splitlines()
  assert first == "t.csv:" and len(lines) == 10
  assert lines[0] == "  row 4 (line 5): no c"
  assert last == "  and 15 more rows"


def test_names_are_escaped_in_messages(tmp_path):
  with pytest.raises(ValueError) as error:
    _read(tmp_path, "\x1b[2Jpath,b\nx,y\n", "\x1b[31m.csv")
  assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
  "data",
  [
    b"\xef\xbb\xbf/v/a b.mp4\r\n\r\n  \r\n/v/\xe7\x8a\xac.mp4\r\n",
    b"/v/a b.mp4\n\n/v/\xe7\x8a\xac.mp4",
    b"/v/a b.mp4\r/v/\xe7\x8a\xac.mp4\r",
    b"/v/a b.mp4\n\xef\xbb\xbf/v/\xe7\x8a\xac.mp4\n",
    "/v/a b.mp4\r\n/v/犬.mp4\r\n".encode("utf-16"),
  ],
)
def test_lists_are_their_non_blank_lines(tmp_path, data):
  path = tmp_path / "l.txt"
  path.write_bytes(data)
  assert tables.read_list(path) == ["/v/a b.mp4", "/v/犬.mp4"]


def test_names_of_files_need_not_be_utf_8():
  names = tables.parse_list(b"\xe9\x85.mp4\nb.mp4\n")
  assert [n.encode("utf-8", "surrogateescape") for n in names] == [
    b"\xe9\x85.mp4",
    b"b.mp4",
  ]
  with pytest.raises(ValueError, match="NUL"):
    tables.parse_list(b"a\0b\n")


CONTENT = strategies.one_of(
  strategies.binary(max_size=60),
  strategies.lists(
    strategies.sampled_from(
      [
        b"path",
        b"caption",
        b",",
        b"\n",
        b"\r",
        b'"',
        b";",
        b"sep=;",
        b"a",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xe9",
        b" ",
      ]
    ),
    max_size=20,
  ).map(b"".join),
)


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(CONTENT)
def test_arbitrary_bytes_are_a_table_or_a_value_error(tmp_path_factory, data):
  path = tmp_path_factory.getbasetemp() / "any.csv"
  path.write_bytes(data)
  try:
    rows = tables.read_table(path, required=("path",))
  except ValueError as error:
    assert str(path) in str(error)
  else:
    assert rows and all(set(row.cells) == {"path"} for row in rows)
  try:
    lines = tables.read_list(path)
  except ValueError as error:
    assert str(path) in str(error)
  else:
    assert all(line.strip() and "\n" not in line for line in lines)


def test_an_ignored_column_like_an_absent_one_is_noted(tmp_path, log_lines):
  path = tmp_path / "t.csv"
  path.write_text("text_prompt,image,notes\na,b.png,x\n")
  rows = tables.read_table(
    path, required=["text_prompt"], optional=["image_path", "seed"]
  )
  assert rows[0].cells["image_path"] == ""
  (line,) = log_lines
  assert "'image' is ignored (did you mean image_path?)" in line


@pytest.mark.parametrize(
  "line", ["<Head shot> of a man", "<headline> news", "<head> of a dog"]
)
def test_a_sentence_in_angles_is_no_web_page(line):
  assert tables.parse_list(f"{line}\n".encode()) == [line]
  assert "web page" not in untrusted.substitute(b"<headline>")
  assert "web page" in untrusted.substitute(b"<head>")


@pytest.mark.parametrize("separator", ["|", "^", ":", " | "])
def test_the_separators_that_are_read_are_named(tmp_path, separator):
  path = tmp_path / "a.csv"
  path.write_text(separator.join(["prompt", "seed"]) + "\n")
  with pytest.raises(ValueError, match="cells are separated by , ; or tab$"):
    tables.read_table(path, required=["prompt"], optional=["seed"])
