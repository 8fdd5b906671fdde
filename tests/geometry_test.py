import json
import pathlib

import pytest

from ovi_jax import geometry

SIZES = json.loads(
  (pathlib.Path(__file__).parent / "goldens" / "sizes.json").read_text()
)


def test_snap_gives_the_original_sizes():
  ours = [list(geometry.snap(s["h"], s["w"], s["area"])) for s in SIZES]
  assert ours == [s["snap"] for s in SIZES]


def test_image_size_gives_the_original_sizes():
  # No image was made for the sizes without an entry.
  known = [s for s in SIZES if s["image"]]
  ours = [list(geometry.image_size(s["h"], s["w"], s["area"])) for s in known]
  assert ours == [s["image"] for s in known]


@pytest.mark.parametrize(
  "height, width, area, size",
  [
    (2021, 1109, 960 * 960, (1312, 704)),
    (2862, 1082, 720 * 720, (1152, 448)),
    (1, 1, 1, (32, 32)),
  ],
)
def test_image_sizes_that_plain_rounding_misses(height, width, area, size):
  assert geometry.image_size(height, width, area) == size


@pytest.mark.parametrize("choose", [geometry.snap, geometry.image_size])
@pytest.mark.parametrize("sizes", [(0, 5, 9), (5, -1, 9), (5, 5, 0)])
def test_sizes_that_are_not_positive_are_refused(choose, sizes):
  with pytest.raises(ValueError, match="must be positive"):
    choose(*sizes)


@pytest.mark.parametrize("choose", [geometry.snap, geometry.image_size])
def test_extreme_aspects_are_refused(choose):
  for height, width in ((10, 4000), (4000, 10), (1, 100_000), (100, 801)):
    with pytest.raises(ValueError, match=f"at most 8 to 1, got {height}x"):
      choose(height, width, 720 * 720)
  rows, columns = choose(100, 800, 720 * 720)
  assert columns / rows == pytest.approx(8, rel=0.1)
  assert rows * columns == pytest.approx(720 * 720, rel=0.1)


@pytest.mark.parametrize(
  "name, side, frames, tokens, samples",
  [
    ("720x720_5s", 704, 121, 15_004, 80_384),
    ("960x960_5s", 960, 121, 27_900, 80_384),
    ("960x960_10s", 960, 241, 54_900, 160_768),
  ],
)
def test_released_variants_have_their_sizes(
  name, side, frames, tokens, samples
):
  variant = geometry.variant(name)
  clip = variant.clip(*geometry.snap(1, 1, variant.area))
  assert clip.pixels == (side, side)
  assert (clip.frames, clip.tokens, clip.samples) == (frames, tokens, samples)
  assert geometry.latent_frames(clip.frames) == clip.latent_frames
  seconds = clip.frames / geometry.FPS
  assert abs(clip.samples / geometry.SAMPLE_RATE - seconds) < 0.02
  assert clip.audio_latents / geometry.AUDIO_LATENT_RATE == pytest.approx(
    clip.samples / geometry.SAMPLE_RATE
  )


def test_an_unknown_variant_lists_the_known_ones():
  with pytest.raises(ValueError, match="720x720_5s, 960x960_5s, 960x960_10s"):
    geometry.variant("720p")


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="multiples of 32, got 720x704"):
    geometry.variant("720x720_5s").clip(720, 704)
  with pytest.raises(ValueError, match="latent_width must be a multiple"):
    geometry.Clip(
      latent_frames=1, latent_height=2, latent_width=3, audio_latents=1
    )
  with pytest.raises(ValueError, match="audio_latents must be at least 1"):
    geometry.Clip(
      latent_frames=1, latent_height=2, latent_width=2, audio_latents=0
    )
  with pytest.raises(ValueError, match="got 123; use 121"):
    geometry.latent_frames(123)


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ((2**20, 4, 4, 5), "latent_frames must be at most 4096: 1048576"),
    ((1, 2**11, 4, 5), "latent_height must be at most 1024: 2048"),
    ((1, 4, 4, 2**20), "audio_latents must be at most 32768: 1048576"),
    ((4096, 1024, 1024, 5), "4194304 video tokens, .* have 1073741824"),
    ((0, 3, 2**30, 5), "latent_frames .*; latent_width .*; latent_height .*"),
  ],
)
def test_clips_of_implausible_sizes_are_refused(sizes, message):
  names = "latent_frames", "latent_height", "latent_width", "audio_latents"
  with pytest.raises(ValueError, match=message):
    geometry.Clip(**dict(zip(names, sizes, strict=True)))
