"""Generated records of the released model's sizes, and smaller ones.

Latents and text are random numbers: what is measured is how they are moved.
Videos are not, since noise decodes at a cost that no clip has: layers of
1/f texture that slide over each other by parts of a pixel, with film grain,
written as `ovi_jax.media` writes samples.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from ovi_jax import geometry
from ovi_jax.data import builder
from ovi_jax.data import clips
from ovi_jax.data import schema
from ovi_jax.data import settings
from ovi_jax.media import mp4
from ovi_jax.modality import AV

CLIP = geometry.Clip(
  latent_frames=31, latent_height=44, latent_width=46, audio_latents=157
)
SMALL_CLIP = geometry.Clip(
  latent_frames=3, latent_height=4, latent_width=4, audio_latents=12
)
SOUND, SMALL_SOUND = 375, 20  # audio latents of 12 s
TEXT, SMALL_TEXT = 200, 5  # rows of a prompt, give or take a quarter
GRAIN = 1.5  # standard deviation in levels of 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """Records of one kind, and how they are read.

  Attributes:
    about: in words.
    records: how many are written.
    batch: of the loader.
    media: straight from mp4 and PCM.
    video: whether there is one.
  """

  about: str
  records: int
  batch: int
  media: bool = False
  video: bool = True


CASES = {
  "fusion": Case(
    about="cached latents of 121 frames of 704 by 736 and 5 s of sound",
    records=32,
    batch=4,
  ),
  "audio": Case(
    about="cached latents of 12 s of sound", records=64, batch=16, video=False
  ),
  "media": Case(
    about="such clips as mp4 and PCM",
    records=3,
    batch=1,
    media=True,
  ),
}


def write(path: pathlib.Path, case: Case, small: bool) -> dict[str, float]:
  """Write a case's dataset; bytes a record, and Mbit/s of its videos."""
  sizes, written = geometry_of(small), []

  def made() -> Iterator[schema.Record]:
    for number in range(case.records):
      record = _record(number, case, small, path.parent)
      written.append(len(record.video or b""))
      yield record

  builder.write(
    path,
    {"train": made()},
    geometry=sizes,
    null_text=np.full((1, sizes.text_dim), 0.5, np.float32),
  )
  stored = sum(f.stat().st_size for f in path.glob("*array_record*"))
  found = {"record_mb": stored / case.records / 1e6}
  if case.media:
    seconds = (SMALL_CLIP if small else CLIP).frames / geometry.FPS
    found["video_mbit_per_second"] = float(np.mean(written)) * 8e-6 / seconds
  return found


def geometry_of(small: bool) -> schema.Geometry:
  """What the records have in common."""
  return schema.Geometry(text_dim=8) if small else schema.Geometry()


def loader_settings(
  path: pathlib.Path, case: Case, small: bool, workers: int
) -> settings.LoaderConfig:
  """How the loader reads them: as the configs say, but for the workers."""
  clip, sound = (SMALL_CLIP, SMALL_SOUND) if small else (CLIP, SOUND)
  bucket = settings.Bucket(audio=sound)
  if case.video:
    video = clip.latent_frames, clip.latent_height, clip.latent_width
    bucket = settings.Bucket(video=video, audio=clip.audio_latents)
  return settings.LoaderConfig(
    sources=(settings.Source(path=str(path)),),
    buckets=(bucket,),
    geometry=geometry_of(small),
    max_text_len=8 if small else 512,
    encode_on_the_fly=case.media,
    num_workers=workers,
  )


def _record(
  number: int, case: Case, small: bool, folder: pathlib.Path
) -> schema.Record:
  """One record; the videos of `media` are different pans."""
  draw, sizes = np.random.default_rng(number), geometry_of(small)
  clip, sound = (SMALL_CLIP, SMALL_SOUND) if small else (CLIP, SOUND)
  text = SMALL_TEXT if small else TEXT
  rows = int(draw.integers(text * 3 // 4, text * 5 // 4 + 1))

  def array(*shape):
    return draw.standard_normal(shape, np.float32).astype(np.float16)

  latents, held = AV(), {}
  if case.media:
    frames_THWC = moving(draw, clip)
    wave_A = draw.standard_normal(clip.samples).astype(np.float32) / 8
    file = folder / "clip.mp4"
    mp4.write(file, [frames_THWC], wave_A)
    height, width = clip.pixels
    held = {
      "video": file.read_bytes(),
      "audio": clips.pcm(wave_A),
      "frames": clip.frames,
      "height": height,
      "width": width,
    }
  elif case.video:
    shape = clip.latent_frames, clip.latent_height, clip.latent_width
    latents = AV(array(*shape, 48), array(clip.audio_latents, 20))
  else:
    latents = AV(None, array(sound, 20))
  return schema.Record(
    id=f"clip-{number}",
    source="generated",
    captions=(f"clip {number}",),
    latents=latents,
    text=(array(rows, sizes.text_dim),),
    **held,
  )


def moving(draw: np.random.Generator, clip: geometry.Clip) -> np.ndarray:
  """uint8 RGB [frames, height, width, 3]: a background and two discs move."""
  height, width = clip.pixels
  layers = [_texture(draw, (height + 64, width + 64)) for _ in range(3)]
  side = min(height, width) // 2
  across = np.linspace(-1, 1, side, dtype=np.float32) ** 2
  far = across[:, None, None] + across[:, None]
  cover = np.clip(4 - 4 * far, 0, 1)
  frames = np.empty((clip.frames, height, width, 3), np.uint8)
  for number in range(clip.frames):
    turn = 2 * np.pi * number / 96
    picture = _window(layers[0], 32 + 30 * np.sin(turn), 32, height, width)
    for k, layer in enumerate(layers[1:]):
      top = int((height - side) * (0.5 + 0.5 * np.sin(turn + k)))
      left = int((width - side) * (0.5 + 0.5 * np.cos((1.5 - k) * turn)))
      under = picture[top : top + side, left : left + side]
      offset = 32 - 0.2 * number, 32 + 0.1 * number
      under += cover * (_window(layer, *offset, side, side) - under)
    grain = draw.standard_normal((height, width, 1), np.float32) * GRAIN
    frames[number] = np.clip(picture + grain, 0, 255).astype(np.uint8)
  return frames


def _texture(draw: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
  """float32 [height, width, 3] whose spectrum falls as of photographs."""
  down, across = np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1])
  frequency = np.hypot(down[:, None], across)
  frequency[0, 0] = np.inf
  planes = []
  for _ in range(3):
    noise = np.fft.rfft2(draw.standard_normal(shape))
    plane = np.fft.irfft2(noise / frequency**1.4, shape)
    planes.append(128 + 45 * plane / plane.std())
  return np.stack(planes, axis=-1).astype(np.float32)


def _window(
  layer: np.ndarray, row: float, column: float, height: int, width: int
) -> np.ndarray:
  """The window of a layer that begins between pixels."""
  top, left = int(row), int(column)
  down, across = np.float32(row - top), np.float32(column - left)
  window = layer[top : top + height + 1, left : left + width + 1]
  mixed = window[:-1] + down * (window[1:] - window[:-1])
  return mixed[:, :-1] + across * (mixed[:, 1:] - mixed[:, :-1])
