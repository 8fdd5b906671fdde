"""Scores of the small Ovi with given frames, video and sound, and in windows.

  python -m scripts.small_ovi.given_scores draw --out=DIR [--count=64]
    [--seed=0]
  python sample.py --prompts=DIR/ends.csv --out=CLIPS …
  python -m scripts.small_ovi.given_scores ends --clips=CLIPS
  python -m scripts.small_ovi.given_scores long --clips=CLIPS

`draw` writes true clips of the world, parts of them, and tables of prompts for
`sample.py`: `v2a.csv` gives their picture, `a2v.csv` their sound, `ends.csv`
their first and last frame, and `long.csv` asks for 20 s. The clips of the first
two are scored by `ovi_jax.synthetic.evaluation`.
"""

import csv
import dataclasses
import io
import json
import pathlib

import numpy as np
from absl import flags
from PIL import Image

from ovi_jax import cli
from ovi_jax import files
from ovi_jax import geometry
from ovi_jax.media import mp4
from ovi_jax.media import wav
from ovi_jax.pretrained import distortion
from ovi_jax.sampling import requests
from ovi_jax.sampling import windows
from ovi_jax.synthetic.evaluation import report
from ovi_jax.synthetic.evaluation import scores
from ovi_jax.synthetic.evaluation import sync
from ovi_jax.synthetic.evaluation import video_detectors
from ovi_jax.synthetic.evaluation import voices
from ovi_jax.synthetic.world import scene
from ovi_jax.synthetic.world import world as worlds

FLAGS = flags.FLAGS
SECONDS = 20.0  # of long clips
_PART = 5.0  # seconds at the beginning and the end that are compared
_LATER = 10.0  # where the later part of a long clip begins
_PERCENTILE = 95  # of jumps elsewhere, which one at a seam is held against
_NEAR = 0.1  # seconds of sound on either side of a seam


def draw(folder: pathlib.Path, count: int, seed: int) -> None:
  """Write true clips, their parts, and tables that give them.

  Raises:
    ValueError: the count is not positive.
  """
  if count < 1:
    raise ValueError(f"count must be at least 1 clip, got {count}")
  folder.mkdir(parents=True, exist_ok=True)
  world = worlds.World(seed=seed, complete=True)
  rows: dict[str, list[dict[str, object]]] = {
    name: [] for name in ("v2a", "a2v", "ends", "long")
  }
  for number in range(count):
    made = world.clip(number)
    frames_THWC, wave_A = made.frames_THWC, made.wave_A
    assert frames_THWC is not None and wave_A is not None  # complete
    stem = f"{number:03}"
    mp4.write(folder / f"{stem}.mp4", [frames_THWC], None)
    wav.write(folder / f"{stem}.wav", wave_A)
    for name, frame in (("first", 0), ("last", -1)):
      Image.fromarray(frames_THWC[frame]).save(folder / f"{stem}_{name}.png")
    given = {
      "v2a": {requests.COLUMNS["video"]: f"{stem}.mp4"},
      "a2v": {requests.COLUMNS["audio"]: f"{stem}.wav"},
      "ends": {
        requests.IMAGE_COLUMN: f"{stem}_first.png",
        requests.COLUMNS["last_image"]: f"{stem}_last.png",
      },
      "long": {requests.SECONDS_COLUMN: SECONDS},
    }
    for name, columns in given.items():
      prompt = made.captions[number % len(made.captions)]
      row: dict[str, object] = {requests.PROMPT_COLUMN: prompt}
      row |= {requests.SEED_COLUMN: seed + number, **columns}
      rows[name].append(row)
  for name, table in rows.items():
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    with files.atomic_path(folder / f"{name}.csv") as temporary:
      temporary.write_text(text.getvalue(), "utf-8")


def ends(folder: pathlib.Path) -> list[scores.Score]:
  """PSNR of the first and the last frame, as "dB", and the colour."""
  values: dict[str, list[float]] = {"first": [], "last": []}
  for path in sorted(folder.glob("*.mp4")):
    frames_THWC = mp4.read(path)[0]
    told = json.loads(path.with_suffix(".json").read_text("utf-8"))
    given = {"first": told["image"], "last": told["given"]["last_image"]}
    for name, place in (("first", 0), ("last", -1)):
      with Image.open(given[name]["path"]) as image:
        wanted_HWC = np.asarray(image.convert("RGB"))
      psnr = distortion.video_psnr(wanted_HWC[None], frames_THWC[place][None])
      values[name].append(psnr)
  table = [_mean(f"PSNR of the {n} frame", x) for n, x in values.items()]
  found = {each.name: each for each in report.score(report.read(folder))}
  return [*table, found["colour"], found["kind"]]


def _mean(name: str, values: list[float]) -> scores.Score:
  """The mean of a number a clip, dB, with the interval of a normal mean."""
  mean = float(np.mean(values))
  half = 1.96 * float(np.std(values)) / max(1, len(values)) ** 0.5
  return scores.Score(
    name=name,
    value=mean,
    low=mean - half,
    high=mean + half,
    clips=len(values),
    of=len(values),
    unit="dB",
  )


def long(folder: pathlib.Path) -> list[scores.Score]:
  """Sync early and late, what stays the same, and seams, of long clips."""
  clips = report.read(folder)
  early, late, same, picture, sound = [], [], [], [], []
  for clip in clips:
    early.append(_f1(clip.track, 0.0, _PART))
    late.append(_f1(clip.track, _LATER, clip.seconds))
    frames_THWC, fps, wave_A, rate = mp4.read(folder / f"{clip.name}.mp4")
    count = round(_PART * fps)
    looks = [
      video_detectors.look(part, fps)
      for part in (frames_THWC[:count], frames_THWC[-count:])
    ]
    kept = set(looks[0].colours) == set(looks[1].colours)
    rate = rate or geometry.SAMPLE_RATE
    if wave_A is not None and clip.facts.kind == scene.FACE:
      size = round(_PART * rate)
      first, last = (
        voices.heard(part, rate) for part in (wave_A[:size], wave_A[-size:])
      )
      kept &= first == last
    same.append(scores.Part(kept, 1))
    told = json.loads((folder / f"{clip.name}.json").read_text("utf-8"))
    at = seams(told)
    picture.append(smooth(picture_jumps(frames_THWC), at))
    if wave_A is not None:
      jumps_A = np.abs(np.diff(wave_A))
      near = round(_NEAR * rate)
      sound.append(smooth(jumps_A, sound_seams(told, rate), near))
  return [
    scores.score(f"sync F1, first {_PART:g} s", early),
    scores.score(f"sync F1, from {_LATER:g} s", late),
    scores.score("colour and voice of the end as of the beginning", same),
    scores.score("seams of the picture without a jump", picture),
    scores.score("seams of the sound without a click", sound),
  ]


def _f1(track: sync.Track, start: float, end: float) -> scores.Part | None:
  """What an interval of a clip adds to the sync F1."""
  part = sync.Track(
    kind=track.kind,
    events=tuple(t for t in track.events if start <= t < end),
    sounds=tuple(t for t in track.sounds if start <= t < end),
    seconds=end,
  )
  return report.f1_part(sync.count(part))


def seams(told: dict) -> list[int]:
  """Frames at which the windows after the first generate something new.

  Args:
    told: the JSON beside a clip.
  """
  stride = geometry.VIDEO_STRIDES[0]
  return [1 + stride * (w.start + w.given - 1) for w in _windows(told)[1:]]


def sound_seams(told: dict, rate: int = geometry.SAMPLE_RATE) -> list[int]:
  """Samples in the middle of the cross-fades from window to window.

  `windows.SoundJoiner` fades in the middle of what two windows share.

  Args:
    told: the JSON beside a clip.
    rate: of the sound, Hz.
  """
  scale = geometry.SAMPLES_PER_AUDIO_LATENT * rate / geometry.SAMPLE_RATE
  return [
    round((window.audio_start + window.audio_given / 2) * scale)
    for window in _windows(told)[1:]
  ]


def _windows(told: dict) -> tuple[windows.Window, ...]:
  """The windows that a clip was generated in."""
  made = told["windows"]
  seconds = windows.seconds_of(made["latent_frames"])
  window = geometry.Clip(
    latent_frames=made["latent_frames"],
    latent_height=2,
    latent_width=2,
    audio_latents=int(seconds * geometry.AUDIO_LATENT_RATE),
  )
  return windows.plan(told["latent_frames"], window, made["overlap"])


def picture_jumps(frames_THWC: np.ndarray) -> np.ndarray:
  """Mean difference of each frame from the one before, [T - 1]."""
  frames = frames_THWC.astype(np.float32)
  return np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))


def smooth(
  jumps_T: np.ndarray, at: list[int], around: int = 0
) -> scores.Part | None:
  """Seams at which the jump is none of the largest ones of the clip.

  Args:
    jumps_T: from each place to the next.
    at: places that follow a seam.
    around: places on either side that count as the seam.
  """
  is_seam = np.zeros(len(jumps_T), bool)
  parts = [slice(max(0, n - 1 - around), n + around) for n in at]
  for part in parts:
    is_seam[part] = True
  if not parts or is_seam.all():
    return None
  elsewhere = jumps_T[~is_seam]
  # As many places elsewhere as a seam has are compared by their largest jump.
  width = 2 * around + 1
  groups = elsewhere[: len(elsewhere) // width * width].reshape(-1, width)
  most = np.percentile(groups.max(1), _PERCENTILE)
  right = sum(float(jumps_T[part].max()) <= most for part in parts)
  return scores.Part(right, len(parts))


def _draw() -> None:
  cli.require_flags(FLAGS, out="DIR")
  draw(pathlib.Path(FLAGS.out), FLAGS.count, FLAGS.seed)
  print(f"wrote {FLAGS.out}")


def _print(table: list[scores.Score]) -> None:
  plain = {"scores": [dataclasses.asdict(each) for each in table]}
  text = report.markdown(table)
  content = {FLAGS.out: json.dumps(plain, indent=1) + "\n"}
  for name, written in {**content, FLAGS.markdown: text}.items():
    if name:
      with files.atomic_path(pathlib.Path(name)) as temporary:
        temporary.write_text(written, "utf-8")
  print(text, end="")


def _ends() -> None:
  cli.require_flags(FLAGS, clips="DIR")
  _print(ends(pathlib.Path(FLAGS.clips)))


def _long() -> None:
  cli.require_flags(FLAGS, clips="DIR")
  _print(long(pathlib.Path(FLAGS.clips)))


def _nothing() -> None:
  raise ValueError("say draw, ends or long; see --help")


if __name__ == "__main__":
  flags.DEFINE_string("clips", "", "Folder of mp4 files to score.")
  flags.DEFINE_string("out", "", "Folder, or JSON file, to write.")
  flags.DEFINE_string("markdown", "", "Markdown file for the table.")
  flags.DEFINE_integer("count", 64, "Number of clips to draw.")
  flags.DEFINE_integer("seed", 0, "Seed of the world.")
  cli.run(_nothing, {"draw": _draw, "ends": _ends, "long": _long})
