"""Reading, resizing and drawing of images."""

import io
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL import ImageCms

from ovi_jax import geometry
from ovi_jax.media import images
from tests.lib import icc_profiles
from tests.lib import parity

RATE = geometry.SAMPLE_RATE


def test_the_first_frame_equals_the_originals(golden):
  reference = golden("image")
  ours_HWC = images.first_frame(reference["image_u8"], 64 * 96)
  assert ours_HWC.dtype == np.float32
  expected_HWC = np.moveaxis(reference["image_f32"], 0, -1)
  parity.assert_close(ours_HWC, expected_HWC, "forward")


def test_resizing_keeps_constants_and_equal_sizes():
  image_HWC = np.random.default_rng(0).random((7, 5, 3), np.float32)
  np.testing.assert_array_equal(
    images.resize_bicubic(image_HWC, 7, 5), image_HWC
  )
  ones_HWC = images.resize_bicubic(np.ones((3, 4, 1), np.float32), 11, 2)
  np.testing.assert_allclose(ones_HWC, 1, atol=1e-6)
  assert ones_HWC.shape == (11, 2, 1)


def test_pixels_are_rounded():
  half = 1 / 255  # half a step of 8 bits, in [-1, 1]
  given = [-1.5, -1, -1 + 0.9 * half, -1 + 1.1 * half, 0.999, 1, 2]
  expected = [0, 0, 0, 1, 255, 255, 255]
  assert images.to_uint8(np.array(given)).tolist() == expected
  levels = np.arange(256)
  assert (images.to_uint8(levels / 127.5 - 1) == levels).all()
  with pytest.raises(ValueError, match="NaN or infinity"):
    images.to_uint8(np.array([0, np.nan]))


RED, BLUE, WHITE = (250, 10, 20), (0, 0, 255), (255, 255, 255)


def _save(path, image, **options):
  image.save(path, **options)
  return images.read_image(path)[0]


def _read(image, form="PNG", **options):
  """The image after it was saved in a format."""
  file = io.BytesIO()
  image.save(file, form, **options)
  return images.read_image(file)


def _png(
  width,
  height,
  chunks=(),
  rows=b"",
  bits=8,
  rgb=False,
  interlaced=0,
  palette=False,
):
  """A PNG of grey, RGB or palette pixels, with chunks before its rows."""
  kind = 3 if palette else 2 if rgb else 0
  head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
  parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows))]
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(value))
    + name
    + value
    + struct.pack(">I", zlib.crc32(name + value))
    for name, value in (*parts, (b"IEND", b""))
  )


def test_images_are_rotated_by_their_orientation(tmp_path):
  image = Image.new("RGB", (6, 4), RED)
  image.putpixel((0, 0), BLUE)
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was held turned by a quarter
  image_HWC = _save(tmp_path / "a.png", image, exif=exif)
  assert image_HWC.shape == (6, 4, 3)
  assert tuple(image_HWC[0, -1]) == BLUE and tuple(image_HWC[0, 0]) == RED


def test_every_pixel_format_becomes_rgb(tmp_path):
  deep = Image.fromarray(np.array([[0, 257 * 99, 65_535]], np.uint16))
  assert _save(tmp_path / "i.png", deep)[0, :, 1].tolist() == [0, 99, 255]
  grey = Image.new("L", (3, 3), 77)
  assert (_save(tmp_path / "g.jpg", grey) == 77).all()
  for mode, form in (("CMYK", "jpg"), ("1", "png"), ("LA", "png")):
    image_HWC = _save(tmp_path / f"{mode}.{form}", Image.new(mode, (3, 3)))
    assert image_HWC.shape == (3, 3, 3) and image_HWC.dtype == np.uint8


def test_a_picture_without_transparency_or_profile_has_no_notes():
  for mode in ("RGB", "RGBA", "L", "P", "1", "LA"):
    level = {"RGBA": (9, 9, 9, 255), "LA": (9, 255), "RGB": (9, 9, 9), "P": 0}
    assert not _read(Image.new(mode, (4, 4), level.get(mode, 1)))[1], mode
  assert not _read(Image.new("RGB", (4, 4)), "JPEG")[1]
  assert not _read(Image.new("RGB", (4, 4)), "WEBP")[1]


def test_transparent_pixels_are_composited_over_white():
  hidden = Image.new("RGBA", (4, 4), (255, 0, 255, 0))
  hidden.putpixel((0, 0), (*RED, 255))
  hidden.putpixel((1, 0), (0, 100, 200, 51))  # a fifth
  for form in ("PNG", "WEBP"):
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    image_HWC, notes = _read(hidden, form, **options)
    assert tuple(image_HWC[2, 2]) == WHITE
    assert tuple(image_HWC[0, 0]) == RED
    assert tuple(image_HWC[0, 1]) == (204, 224, 244)
    assert notes == ("transparent pixels are composited over white",)


def test_transparent_palettes_and_colours_are_white_too():
  palette = Image.new("P", (3, 1), 1)
  palette.putpalette([*BLUE, *RED, *BLUE])
  palette.putpixel((0, 0), 0)
  image_HWC, notes = _read(palette, transparency=bytes([0, 51, 255]))
  assert tuple(image_HWC[0, 0]) == WHITE
  assert tuple(image_HWC[0, 1]) == (254, 206, 208)
  assert len(notes) == 1
  for mode, clear, other in (
    ("RGB", (9, 8, 7), RED),
    ("L", 9, 70),
    ("1", 0, 255),
  ):
    image = Image.new(mode, (2, 1), clear)
    image.putpixel((1, 0), other)
    image_HWC, notes = _read(image, transparency=clear)
    assert tuple(image_HWC[0, 0]) == WHITE and len(notes) == 1, mode
    expected = other if mode == "RGB" else (other,) * 3
    assert tuple(image_HWC[0, 1]) == expected, mode
  deep = Image.fromarray(np.array([[300, 65_535, 256]], np.uint16))
  image_HWC, _ = _read(deep, transparency=300)
  assert image_HWC[0, :, 0].tolist() == [255, 255, 1]


@pytest.mark.parametrize(
  "bits, clear, samples, shown",
  [
    (2, (1,), bytes([0b01_10_0000]), 170),
    (4, (5,), bytes([0x56]), 102),
    (16, (200, 200, 200), struct.pack(">6H", *[200] * 3, *[51_400] * 3), 200),
    (16, (300, 300, 300), struct.pack(">6H", *[300] * 3, *[301] * 3), 1),
  ],
)
def test_transparent_colours_of_other_depths_are_white(
  bits, clear, samples, shown
):
  chunk = (b"tRNS", struct.pack(f">{len(clear)}H", *clear))
  data = _png(2, 1, [chunk], b"\0" + samples, bits, rgb=len(clear) == 3)
  image_HWC, notes = images.read_image(io.BytesIO(data))
  assert image_HWC[0, :, 0].tolist() == [255, shown]
  assert notes == ("transparent pixels are composited over white",)


def test_display_p3_becomes_srgb():
  profile = icc_profiles.rgb()
  image = Image.new("RGB", (8, 8), (200, 120, 100))
  for form, options in (
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("JPEG", {"quality": 100, "subsampling": 0}),
  ):
    image_HWC, notes = _read(image, form, icc_profile=profile, **options)
    assert np.abs(image_HWC - np.array((213, 115, 95))).max() <= 1, form
    assert not notes
  image_HWC, _ = _read(image, icc_profile=profile)
  assert tuple(image_HWC[0, 0]) == (213, 115, 95)
  palette, _ = _read(image.quantize(), icc_profile=profile)
  assert tuple(palette[0, 0]) == (213, 115, 95)
  clear = Image.new("RGBA", (8, 8), (200, 120, 100, 255))
  clear.putpixel((0, 0), (0, 0, 0, 0))
  image_HWC, _ = _read(clear, icc_profile=profile)
  assert tuple(image_HWC[0, 0]) == WHITE
  assert tuple(image_HWC[1, 1]) == (213, 115, 95)


def test_srgb_s_own_profile_changes_no_pixel():
  random = np.random.default_rng(0)
  levels_HWC = random.integers(0, 256, (40, 40, 3), np.uint8)
  profile = icc_profiles.rgb(icc_profiles.SRGB)
  image_HWC, notes = _read(Image.fromarray(levels_HWC), icc_profile=profile)
  np.testing.assert_array_equal(image_HWC, levels_HWC)
  assert not notes


def test_profiles_of_grey_and_of_inks_are_applied():
  linear = icc_profiles.grey(1.0)
  image_HWC, notes = _read(Image.new("L", (4, 4), 128), icc_profile=linear)
  # 128 of 255 parts of the light.
  assert tuple(image_HWC[0, 0]) == (188, 188, 188) and not notes
  deep = Image.fromarray(np.full((2, 2), 128 * 257, np.uint16))
  assert _read(deep, icc_profile=linear)[0][0, 0, 0] == 188
  # A camera's colour profile is kept when a picture is made grey.
  assert _read(Image.new("L", (4, 4), 77), icc_profile=icc_profiles.rgb())[0][
    0, 0
  ].tolist() == [77, 77, 77]
  inks = icc_profiles.cmyk({(1, 0, 0, 0): (60, -30, -40)})
  cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
  image_HWC, notes = _read(cyan, "JPEG", quality=100, icc_profile=inks)
  # L*a*b* (60, -30, -40): red is out of sRGB.
  assert np.abs(image_HWC[4, 4] - np.array((0, 163, 213))).max() <= 6
  assert not notes
  image_HWC, notes = _read(cyan, "JPEG", quality=100)
  assert tuple(image_HWC[4, 4]) == (0, 255, 255)
  assert notes == ("CMYK without a colour profile: colours are approximate",)


def test_unusable_profiles_are_ignored_with_a_note():
  image, good = Image.new("RGB", (8, 8), (200, 120, 100)), icc_profiles.rgb()
  for profile, why in (
    (b"x", "cannot open"),
    (good[:200], "cannot open"),
    (good[:128] + b"\xff" * 4 + good[132:], "cannot open"),
    (good[:300] + b"\xff" * 3000, "build transform"),
    (icc_profiles.grey(2.2), "it is for GRAY, the pixels are RGB"),
    (icc_profiles.rgb(kind=b"link"), "class is not supported"),
    (bytes(5 << 20), "5242880 bytes"),
  ):
    options = {"icc_profile": profile, "lossless": True}
    image_HWC, notes = _read(image, "WEBP", **options)
    assert tuple(image_HWC[0, 0]) == (200, 120, 100)
    (note,) = notes
    assert "profile is ignored" in note and why in note


def test_a_profile_that_cannot_be_decompressed_is_noted():
  chunk = (b"iCCP", b"p\0\0xx")
  _, (note,) = images.read_image(io.BytesIO(_png(1, 1, [chunk], bytes(2))))
  assert "its colour profile is ignored (it cannot be decompressed)" in note


@pytest.mark.parametrize(
  "start", [b"\x89PNG\r\n", b"\xff\xd8\xff", b"RIFF1234WEBP"]
)
def test_damaged_pictures_are_reported(start):
  with pytest.raises(ValueError, match="found a damaged picture"):
    images.read_image(io.BytesIO(start))


def test_png_gamma_without_a_profile_is_noted():
  rows = bytes(2)
  for gamma, noted in ((45_455, False), (100_000, True)):
    chunk = (b"gAMA", struct.pack(">I", gamma))
    _, notes = images.read_image(io.BytesIO(_png(1, 1, [chunk], rows)))
    assert bool(notes) == noted
  srgb = (b"sRGB", b"\0")
  _, notes = images.read_image(io.BytesIO(_png(1, 1, [srgb, chunk], rows)))
  assert not notes


def test_a_16_bit_transparent_colour_is_rotated_with_the_image():
  exif = Image.Exif()
  exif[0x112] = 6  # turn by 90 degrees
  chunks = [
    (b"tRNS", struct.pack(">3H", 300, 300, 300)),
    (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")),
  ]
  rows = struct.pack(">6H", *[300] * 3, *[301] * 3)
  data = _png(2, 1, chunks, b"\0" + rows, 16, rgb=True)
  image_HWC, _ = images.read_image(io.BytesIO(data))
  assert image_HWC[:, 0, 0].tolist() == [255, 1]


@pytest.mark.parametrize(
  "code_points, given, expected",
  [
    ((1, 13, 0, 1), (200, 120, 100), (200, 120, 100)),  # sRGB
    ((1, 1, 0, 1), (200, 120, 100), (200, 120, 100)),  # BT.709
    ((12, 13, 0, 1), (200, 120, 100), (213, 115, 95)),  # Display P3
    ((12, 13, 0, 1), (0, 255, 0), (0, 255, 0)),  # out of sRGB
    ((9, 16, 0, 1), (148, 148, 148), (184, 184, 184)),  # PQ: 203 cd/m²
  ],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_png_cicp_code_points_are_applied(
  code_points, given, expected, bits, tmp_path
):
  samples = bytes(given)
  if bits == 16:
    samples = struct.pack(">3H", *(257 * level for level in given))
  profile = zlib.compress(icc_profiles.rgb())  # the second profile
  chunks = [
    (b"iCCP", b"p\0\0" + profile),
    (b"cICP", bytes(code_points)),
  ]
  data = _png(1, 1, chunks, b"\0" + samples, bits, rgb=True)
  path = tmp_path / "a.png"
  path.write_bytes(data)
  for source in (path, io.BytesIO(data)):
    image_HWC, notes = images.read_image(source)
    assert image_HWC[0, 0].tolist() == pytest.approx(expected, abs=1)
    assert not notes


@pytest.mark.parametrize(
  "code_points", [(9, 99, 0, 1), (12, 13, 1, 1), (12, 13, 0, 0), (2, 2, 0, 1)]
)
def test_unknown_png_cicp_code_points_are_noted(code_points):
  chunk = (b"cICP", bytes(code_points))
  data = _png(1, 1, [chunk], bytes([0, 200, 120, 100]), rgb=True)
  image_HWC, (note,) = images.read_image(io.BytesIO(data))
  assert image_HWC[0, 0].tolist() == [200, 120, 100]
  named = "/".join(map(str, code_points))
  assert note == f"its cICP colours {named} are unknown and ignored"


def test_adobe_rgb_of_cameras_is_noted():
  image = Image.new("RGB", (2, 2), RED)
  for index, expected in (
    ("R98", ()),
    (
      "R03",
      ("Adobe RGB without a colour profile: colours are read as sRGB",),
    ),
  ):
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 65_535, 0xA005: {1: index}}
    assert _read(image, "JPEG", exif=exif)[1] == expected


def test_pictures_without_exif_are_read_with_any_pillow(monkeypatch):
  """Before Pillow 13 a directory that is not there was a KeyError."""

  def get_ifd(exif, tag):
    raise KeyError(tag)

  monkeypatch.setattr(Image.Exif, "get_ifd", get_ifd)
  image_HWC, notes = _read(Image.new("RGB", (2, 2), RED))
  assert image_HWC[0, 0].tolist() == list(RED) and notes == ()


@pytest.mark.parametrize("bits", [8, 16])
def test_damaged_exif_data_of_a_png_are_ignored(bits):
  rows = b"\0" + bytes(value for c in RED for value in [c] * (bits // 8))
  data = _png(1, 1, [(b"eXIf", b"damaged")], rows, bits, rgb=True)
  image_HWC, notes = images.read_image(io.BytesIO(data))
  assert image_HWC[0, 0].tolist() == list(RED) and notes == ()


def test_a_png_with_more_than_a_mebibyte_of_metadata_is_read():
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  many = zlib.compress(bytes(2 << 20))
  rows = b"\0" + bytes(RED)
  for chunk in (
    (b"zTXt", b"workflow\0\0" + many),
    (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + many),
    (b"iCCP", b"a\0\0" + zlib.compress(profile + bytes(2 << 20))),
  ):
    data = _png(1, 1, [chunk], rows, rgb=True)
    image_HWC, _ = images.read_image(io.BytesIO(data))
    assert image_HWC[0, 0].tolist() == list(RED)


def test_the_first_of_several_images_is_used():
  first, second = (Image.new("RGB", (8, 8), c) for c in (RED, BLUE))
  for form, options in (("PNG", {}), ("WEBP", {"lossless": True})):
    image_HWC, notes = _read(
      first, form, save_all=True, append_images=[second], **options
    )
    assert tuple(image_HWC[0, 0]) == RED
    assert notes == ("the image is animated; its first frame is used",)
  # As phones write depth or brightness beside a picture.
  image_HWC, notes = _read(first, "MPO", save_all=True, append_images=[second])
  assert np.abs(image_HWC[0, 0] - np.array(RED)).max() < 6 and not notes


@pytest.mark.parametrize(
  "form", ["TIFF", "GIF", "BMP", "DDS", "EPS", "PDF", "AVIF", "JPEG2000", "ICO"]
)
def test_other_formats_are_refused_by_content(form, tmp_path, monkeypatch):
  def start(*_, **__):
    raise AssertionError("a program was started")

  monkeypatch.setattr(subprocess, "Popen", start)
  path = tmp_path / "x.png"
  Image.new("RGB", (64, 64)).save(path, form)
  with pytest.raises(ValueError, match=r"x.png: found .* expected a PNG, JPEG"):
    images.read_image(path)


def test_unsupported_phone_formats_are_named(tmp_path):
  path = tmp_path / "a.jpg"
  for start, kind in (
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture"),
    (b"\0\0\0\x20ftypisom", "a video"),
    (b"<!DOCTYPE html>", "SVG or HTML"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
    (b"", "an empty file"),
  ):
    path.write_bytes(start)
    with pytest.raises(ValueError, match=f"a.jpg: found {kind}; expected a"):
      images.read_image(path)


@pytest.mark.parametrize(
  "width, height", [(1, 100_000), (89_000_000, 1), (4000, 10), (801, 100)]
)
def test_extreme_aspects_are_refused_before_decoding(width, height):
  # No row is there: reading pixels would be another error.
  with pytest.raises(ValueError, match=f"at most 8 to 1, got {height}x{width}"):
    images.read_image(io.BytesIO(_png(width, height)))


def test_sizes_are_checked_before_decoding():
  for side in (10_000, 30_000, 2**31 - 1):
    with pytest.raises(ValueError, match="too large"):
      images.read_image(io.BytesIO(_png(side, side)))
  with pytest.raises(ValueError, match="expected a PNG, JPEG or WebP"):
    images.read_image(io.BytesIO(_png(0, 0)))


def test_invalid_images_are_named(tmp_path, monkeypatch):
  noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
  Image.fromarray(noise).save(tmp_path / "cut.jpg")
  whole = (tmp_path / "cut.jpg").read_bytes()
  (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "text.png").write_text("no picture")
  for name in ["cut.jpg", "text.png", "missing.png", "."]:
    with pytest.raises(ValueError, match="expected a PNG, JPEG") as error:
      images.read_image(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
  (tmp_path / "\x1b[2J.png").touch()
  with pytest.raises(ValueError, match=r"\\x1b\[2J.png: found an empty"):
    images.read_image(tmp_path / "\x1b[2J.png")
  Image.new("L", (20, 20)).save(tmp_path / "huge.png")
  for limit in (300, 100):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=f"too large .* most {limit} pixels"):
      images.read_image(tmp_path / "huge.png")


@pytest.mark.parametrize(
  ("chunks", "what"),
  [
    ([], "palette is missing"),
    ([(b"PLTE", b"")], "palette is missing"),
    ([(b"PLTE", bytes(RED))], "colour 1 of a palette whose last is 0"),
  ],
)
@pytest.mark.parametrize("bits", [1, 8])
def test_a_png_that_lacks_colours_of_its_palette_is_refused(chunks, what, bits):
  rows = b"\0\x40" if bits == 1 else b"\0\0\1"
  data = _png(2, 1, chunks, rows, bits, palette=True)
  with pytest.raises(ValueError, match=what):
    images.read_image(io.BytesIO(data))
  both = [(b"PLTE", bytes(RED + BLUE))]
  data = _png(2, 1, both, rows, bits, palette=True)
  image_HWC, _ = images.read_image(io.BytesIO(data))
  assert image_HWC.tolist() == [[list(RED), list(BLUE)]]


@pytest.mark.parametrize("rows", [0, 1, 4, 15])
def test_a_png_whose_stream_ends_before_its_rows_is_truncated(rows):
  row = b"\0" + bytes([200, 90, 10]) * 16
  data = _png(16, 16, rows=row * rows, rgb=True)
  with pytest.raises(ValueError, match="truncated"):
    images.read_image(io.BytesIO(data))
  image_HWC, _ = images.read_image(
    io.BytesIO(_png(16, 16, rows=row * 16, rgb=True))
  )
  assert (image_HWC == (200, 90, 10)).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("width, height", [(1, 1), (3, 5), (9, 8), (20, 33)])
def test_interlaced_pngs_have_the_rows_of_seven_passes(width, height, bits):
  size, grid = 0, np.zeros((height, width), int)
  for number, (top, left, down, across) in enumerate(
    [
      (0, 0, 8, 8),
      (0, 4, 8, 8),
      (4, 0, 8, 4),
      (0, 2, 4, 4),
      (2, 0, 4, 2),
      (0, 1, 2, 2),
      (1, 0, 2, 1),
    ],
    1,
  ):
    part = grid[top::down, left::across]
    part += number
    size += len(part) * (1 + -(-part.shape[1] * bits // 8)) if part.size else 0
  assert set(grid.flat) <= set(range(1, 8))  # each pixel in one pass
  data = _png(width, height, rows=bytes(size), bits=bits, interlaced=1)
  assert images.read_image(io.BytesIO(data))[0].shape == (height, width, 3)
  data = _png(width, height, rows=bytes(size - 1), bits=bits, interlaced=1)
  with pytest.raises(ValueError, match="truncated"):
    images.read_image(io.BytesIO(data))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_damaged_pictures_are_read_or_refused(form):
  """Whatever byte is wrong: a picture, or one ValueError."""
  exif = Image.Exif()
  exif[0x0112] = 6
  file = io.BytesIO()
  Image.new("RGBA" if form != "JPEG" else "RGB", (16, 8), BLUE).save(
    file, form, exif=exif, icc_profile=icc_profiles.grey(2.2)
  )
  content, random = file.getvalue(), np.random.default_rng(0)
  for _ in range(300):
    damaged = bytearray(content)
    for place in random.integers(0, len(content), random.integers(1, 4)):
      damaged[place] = random.choice([0, 1, 127, 128, 255])
    try:
      images.read_image(io.BytesIO(bytes(damaged[: random.integers(9, 9999)])))
    except ValueError as error:
      assert "\n" not in str(error)


def test_a_contact_sheet_shows_every_frame():
  frames_THWC = np.zeros((5, 8, 10, 3), np.uint8)
  frames_THWC[:] = np.arange(10, 60, 10)[:, None, None, None]
  sheet = images.contact_sheet(frames_THWC, 3)
  assert sheet.size == (3 * 10 + 4 * 4, 2 * 8 + 3 * 4)
  places = [(9, 8), (23, 8), (37, 8), (9, 20), (23, 20), (37, 20)]
  levels = [sheet.getpixel(place)[0] for place in places]
  assert levels == [10, 20, 30, 40, 50, 0]
  with pytest.raises(ValueError, match="at least 1 column"):
    images.contact_sheet(frames_THWC, 0)


def test_a_waveform_shows_where_the_sound_is():
  wave = np.zeros(2 * RATE, np.float32)
  wave[RATE:] = np.tile([0.5, -0.5], RATE // 2)
  image = np.asarray(images.waveform_png(wave, RATE, 200, 101))
  navy_HW = (image == (0, 0, 128)).all(-1)
  assert navy_HW[:, 50].nonzero()[0].tolist() == [50]
  assert navy_HW[:, 150].nonzero()[0].tolist() == list(range(25, 76))
