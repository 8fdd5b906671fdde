import dataclasses
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


def test_a_file_gives_a_request_a_row(folder):
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
    ("text_prompt\ta\nb\tc\n", "list.csv", "needs one column text_prompt"),
    ("text_prompt,text_prompt\na,b\n", "list.csv", "needs one column"),
    ("text_prompt\na\n", "list.txt", r"ends in '.txt'; expected .csv or"),
    ("text_prompt\na\n", "list", "ends in 'nothing'"),
    ('text_prompt\na\n"b\nc\n', "list.csv", r"row 2 \(line 4\) is malf"),
    ('text_prompt\n"b" c\n', "list.csv", r"row 1 \(line 2\) is malformed"),
    (b"text_prompt\n\xff\xfe\n", "list.csv", "is not UTF-8"),
    ("text_prompt\na, b\n", "list.csv", "row 1: 2 cells for 1 columns"),
  ],
)
def test_unfit_files_are_named(folder, text, name, message):
  path = folder / name if text is None else _file(folder, text, name)
  with pytest.raises(ValueError, match=message) as error:
    requests.from_file(path)
  assert str(path) in str(error.value)


def test_every_bad_row_is_listed(folder):
  text = "text_prompt,image_path\n,\na,none.png\nb,\n &nbsp; ,\n"
  with pytest.raises(ValueError, match=r"list\.csv") as error:
    requests.from_file(_file(folder, text))
  _, *lines = str(error.value).splitlines()
  assert [line.split(":")[0].strip() for line in lines] == [
    "row 1",
    "row 2",
    "row 4",
  ]
  assert "prompt is empty" in lines[0] and "none.png" in lines[1]
  path = _file(folder, "image_path,text_prompt\nwide.png\n")
  with pytest.raises(ValueError, match="row 1: the prompt is empty"):
    requests.from_file(path)


def test_modes(folder):
  path = _file(folder, "text_prompt,image_path\na,wide.png\nb,\nc,none.png\n")
  assert all(r.image is None for r in requests.from_file(path, "t2v"))
  with pytest.raises(ValueError, match=r"row 2: no image; mode i2v wants one"):
    requests.from_file(path, "i2v")
  for call in (requests.from_file, requests.from_prompt):
    with pytest.raises(ValueError, match="choose from auto, t2v, i2v"):
      call(str(path), mode="t2i2v")


def test_one_prompt(folder):
  (request,) = requests.from_prompt("a", folder / "wide.png")
  assert request.image == folder / "wide.png" and request.index == 1
  assert requests.from_prompt("a", "none", "t2v")[0].image is None
  with pytest.raises(ValueError, match="the prompt is empty"):
    requests.from_prompt(" \n")
  with pytest.raises(ValueError, match=r"image is missing: .*none"):
    requests.from_prompt("a", folder / "none")
  with pytest.raises(ValueError, match="no image; mode i2v"):
    requests.from_prompt("a", mode="i2v")


def test_repetitions_have_their_own_seed_size_and_name(folder):
  given = [
    *requests.from_prompt("A dog"),
    *requests.from_prompt("A cat", folder / "wide.png"),
  ]
  expanded = requests.expand(given, 2, 100, **SIZE)
  assert [(r.seed, r.size, r.stem) for r in expanded] == [
    (100, (704, 704), "A_dog_704x704_100"),
    (101, (704, 704), "A_dog_704x704_101"),
    (100, (512, 1024), "A_cat_512x1024_100"),
    (101, (512, 1024), "A_cat_512x1024_101"),
  ]


def test_a_row_may_have_a_seed(folder):
  text = "text_prompt,seed\nA dog,7\nA cat,\nA fox,4294967295\n"
  given = requests.from_file(_file(folder, text))
  seeds = [r.seed for r in requests.expand(given, 2, 100, **SIZE)]
  assert seeds == [7, 8, 100, 101, 4294967295, 0]
  for wrong in ("-1", "4294967296", "x", "1.5"):
    path = _file(folder, f"text_prompt,seed\nA dog,1\nA cat,{wrong}\n")
    with pytest.raises(ValueError, match=f"row 2: expected a seed.*{wrong}"):
      requests.from_file(path)


def test_equal_names_get_their_row(folder):
  path = _file(folder, "text_prompt\nA dog\na  DOG!\nA cat\n")
  expanded = requests.expand(requests.from_file(path), 1, 7, **SIZE)
  assert [r.stem for r in expanded] == [
    "A_dog_704x704_7_1",
    "a_DOG_704x704_7_2",
    "A_cat_704x704_7",
  ]


def test_expanding_refuses_what_cannot_be_generated(folder):
  given = requests.from_prompt("a", folder / "broken.png")
  with pytest.raises(ValueError, match=r"row 1: .*broken\.png"):
    requests.expand(given, 1, 0, **SIZE)
  with pytest.raises(ValueError, match="each_example_n_times must be at least"):
    requests.expand(requests.from_prompt("a"), 0, 0, **SIZE)
  with pytest.raises(ValueError, match="must be positive"):
    requests.expand(requests.from_prompt("a"), 1, 0, **{**SIZE, "height": 0})
  with pytest.raises(ValueError, match="at most 8 to 1, got 10x4000"):
    wish = {**SIZE, "height": 10, "width": 4000}
    requests.expand(requests.from_prompt("a"), 1, 0, **wish)


def test_unfit_images_are_all_named_but_no_more_than_ten(folder):
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


def test_what_is_changed_of_an_image_is_noted(folder):
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
