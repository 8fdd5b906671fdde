"""Scores of speech on recordings whose words and speakers are known.

  python -m benchmarks.speech_metrics --recordings=DIR --whisper=FOLDER
    [--clips_per_speaker=10] [--cache=DIR] [--out=FILE.json]
  python -m benchmarks.speech_metrics --recordings=DIR --clips=DIR

DIR has recordings of English digits, `{digit}_{speaker}_{index}.wav`, as the
Free Spoken Digit Dataset has them. Four of a speaker in a row are a clip.

- Recognition: the word error rate of Whisper by speaker. It writes digits as
  words or figures, apart or together, so both texts are compared as figures;
  other words count as errors.
- Voices: cosines of pairs of clips of one speaker and of two, and the
  equal-error rate, at which as many pairs of one speaker are rejected as pairs
  of two are accepted.
- DNSMOS of the first three clips of each speaker, and of copies with white
  noise at 30, 20 and 10 dB. Here, digits follow each other without pauses:
  digital silence between words lowers its scores more than noise at 30 dB does.

The second form only writes the clips and `prompts.csv`, a table of what is
said, for `ovi_jax.evaluation run`.

The extractors are those of `ovi_jax.evaluation`; what is not installed is an
error.
"""

import collections
import dataclasses
import itertools
import json
import pathlib
import re
import tempfile
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks import machine
from ovi_jax import cli
from ovi_jax import files
from ovi_jax import storage
from ovi_jax.evaluation import clips as clips_lib
from ovi_jax.evaluation import features
from ovi_jax.evaluation import intervals
from ovi_jax.evaluation import lists
from ovi_jax.evaluation import word_errors
from ovi_jax.evaluation.extractors import registry
from ovi_jax.media import wav

RATE = 8000
DIGITS = 4  # of a clip
PAUSE = 0.1  # seconds after each, for recognition and voices
SCORED = 3  # clips of each speaker that DNSMOS scores
NOISE_DB = (30, 20, 10)  # signal to noise
SCORES = ("ovrl", "sig", "bak", "p808")
_NAME = re.compile(r"(\d)_([^_]+)_(\d+)")
_WORDS = {
  **{"zero": "0", "oh": "0", "one": "1", "two": "2", "three": "3"},
  **{"four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8"},
  "nine": "9",
}

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
  """A clip of four digits.

  Attributes:
    name: of its file, without suffix.
    speaker: who speaks.
    digits: that are said.
    parts: their recordings, mono at `RATE`.
  """

  name: str
  speaker: str
  digits: str
  parts: tuple[np.ndarray, ...]

  def wave(self, pause: float) -> np.ndarray:
    """The digits in a row, each followed by `pause` seconds of silence."""
    silence = np.zeros(round(pause * RATE), np.float32)
    return np.concatenate([x for part in self.parts for x in (part, silence)])


def read(folder: pathlib.Path, count: int, seed: int) -> list[Recording]:
  """Join recordings of digits to clips.

  Args:
    folder: of the recordings.
    count: clips of each speaker.
    seed: of the choice of digits and recordings.

  Raises:
    ValueError: there are no recordings, or only those of one speaker, or one
      has another rate.
  """
  takes: dict[str, dict[str, list[pathlib.Path]]] = {}
  for path in sorted(folder.glob("*.wav")):
    if match := _NAME.fullmatch(path.stem):
      digit, speaker, _ = match.groups()
      takes.setdefault(speaker, {}).setdefault(digit, []).append(path)
  if len(takes) < 2:
    raise ValueError(
      f"{folder}: expected recordings DIGIT_SPEAKER_INDEX.wav of at least two"
      f" speakers, found {len(takes)} speakers"
    )
  random, made = np.random.default_rng(seed), []
  for speaker, of_speaker in sorted(takes.items()):
    for number in range(count):
      chosen = [str(x) for x in random.choice(sorted(of_speaker), DIGITS)]
      parts = []
      for digit in chosen:
        paths = of_speaker[digit]
        parts.append(_wave(paths[random.integers(len(paths))]))
      made.append(
        Recording(
          name=f"{speaker}_{number:02}",
          speaker=speaker,
          digits="".join(chosen),
          parts=tuple(parts),
        )
      )
  return made


def first_of_each(
  recordings: Sequence[Recording], count: int
) -> list[Recording]:
  """At most `count` clips of each speaker."""
  seen: collections.Counter[str] = collections.Counter()
  found = []
  for each in recordings:
    seen[each.speaker] += 1
    if seen[each.speaker] <= count:
      found.append(each)
  return found


def _wave(path: pathlib.Path) -> np.ndarray:
  clip = clips_lib.read_clip(path, lists.PromptTable())
  media = clips_lib.Media(clips_lib.Source(clip=clip))
  if media.rate != RATE:
    raise ValueError(f"{path}: expected {RATE} Hz, found {media.rate}")
  return media.mono()


def noisy(wave_A: np.ndarray, decibels: float, seed: int) -> np.ndarray:
  """A sound with white noise, `decibels` below its mean power."""
  power = float(np.square(wave_A, dtype=np.float64).mean())
  deviation = np.sqrt(power * 10 ** (-decibels / 10))
  random = np.random.default_rng(seed)
  return np.clip(wave_A + random.normal(0, deviation, wave_A.shape), -1, 1)


def figures(text: str) -> list[str]:
  """The words of a recognized text, digits as single figures."""
  words = []
  for word in re.findall(r"[a-z']+|\d", text.lower()):
    words.append(_WORDS.get(word, word))
  return words


def error_rates(
  recordings: Sequence[Recording], texts: Sequence[str]
) -> dict[str, intervals.Interval]:
  """Mean of the clips' word error rates, of "all" and by speaker.

  Intervals of 95 % are over clips.
  """
  found: dict[str, list[float]] = {"all": []}
  for recording, text in zip(recordings, texts, strict=True):
    wrong = word_errors.distance(list(recording.digits), figures(text))
    for key in ("all", recording.speaker):
      found.setdefault(key, []).append(wrong / DIGITS)
  return {
    key: intervals.bootstrap_mean(np.array(rates), intervals.DRAWS, 0)
    for key, rates in found.items()
  }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voices:
  """How well cosines of embeddings tell speakers apart.

  Attributes:
    same: mean cosine of two clips of one speaker.
    different: of two clips of different speakers.
    equal_error_rate: see the module.
    threshold: cosine at that rate.
    pairs: number of pairs of one speaker and of two.
  """

  same: float
  different: float
  equal_error_rate: float
  threshold: float
  pairs: tuple[int, int]


def voices(speakers: Sequence[str], embedding_ND: np.ndarray) -> Voices:
  """Compare all pairs of clips.

  Args:
    speakers: of the clips.
    embedding_ND: of unit length.
  """
  cosine_NN = np.asarray(embedding_ND, np.float64) @ embedding_ND.T
  same, different = [], []
  for i, j in itertools.combinations(range(len(speakers)), 2):
    kind = same if speakers[i] == speakers[j] else different
    kind.append(float(cosine_NN[i, j]))
  rate, threshold = equal_error_rate(np.array(same), np.array(different))
  return Voices(
    same=float(np.mean(same)),
    different=float(np.mean(different)),
    equal_error_rate=rate,
    threshold=threshold,
    pairs=(len(same), len(different)),
  )


def equal_error_rate(
  same: np.ndarray, different: np.ndarray
) -> tuple[float, float]:
  """The equal-error rate and its threshold.

  Where no threshold makes both errors equal, the mean of the closest two.
  """
  thresholds = np.unique(np.concatenate([same, different]))
  rejected = np.searchsorted(np.sort(same), thresholds) / len(same)
  accepted = 1 - np.searchsorted(np.sort(different), thresholds) / len(
    different
  )
  best = int(np.argmin(np.abs(rejected - accepted)))
  rate = (rejected[best] + accepted[best]) / 2
  return float(rate), float(thresholds[best])


def write(
  recordings: Sequence[Recording],
  folder: pathlib.Path,
  pause: float = PAUSE,
  noise: float | None = None,
) -> None:
  """Write clips, or copies with noise; arguments are those of `extract`."""
  folder.mkdir(parents=True, exist_ok=True)
  for number, each in enumerate(recordings):
    wave_A = each.wave(pause)
    if noise is not None:
      wave_A = noisy(wave_A, noise, number)
    wav.write(folder / f"{each.name}.wav", wave_A, RATE)


def prompt_table(recordings: Sequence[Recording]) -> str:
  """What is said, as a table for `ovi_jax.evaluation run --prompts`."""
  rows = [f"{each.name},{' '.join(each.digits)},0" for each in recordings]
  return "\n".join(["name,text_prompt,seed", *rows]) + "\n"


def extract(
  names: Sequence[str],
  recordings: Sequence[Recording],
  whisper: str,
  folder: pathlib.Path,
  cache: pathlib.Path,
  pause: float = PAUSE,
  noise: float | None = None,
) -> list[dict[str, np.ndarray]]:
  """Features of clips, or of copies with noise.

  Args:
    names: of extractors.
    recordings: the clips.
    whisper: folder of Whisper's weights.
    folder: where the clips are written.
    cache: of features.
    pause: seconds of silence after each digit.
    noise: signal to noise in decibels; None for none.

  Raises:
    ValueError: a package or weights are missing.
  """
  made = registry.make({"whisper": whisper} if whisper else {})
  if missing := [made[name].missing for name in names if made[name].missing]:
    raise ValueError("; ".join(missing))
  write(recordings, folder, pause, noise)
  clips = {clip.name: clip for clip in clips_lib.read_folder(folder)}
  sources = [clips_lib.Source(clip=clips[each.name]) for each in recordings]
  return features.extract([made[name] for name in names], sources, cache)


def measure(
  recordings: Sequence[Recording], whisper: str, cache: pathlib.Path
) -> dict[str, Any]:
  """All scores; see the module."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    names = ("whisper", "voice")
    clean = extract(names, recordings, whisper, folder / "clean", cache)
    scored = first_of_each(recordings, SCORED)
    opinions = {
      "clean" if noise is None else f"{noise} dB": extract(
        ("dnsmos",), scored, "", folder / str(noise), cache, 0.0, noise
      )
      for noise in (None, *NOISE_DB)
    }
  texts = [str(each["whisper.text"]) for each in clean]
  rows = np.stack([each["voice.embedding"] for each in clean])
  return {
    "clips": len(recordings),
    "scored": len(scored),
    "wer": {
      key: (rate.value, rate.low, rate.high)
      for key, rate in error_rates(recordings, texts).items()
    },
    "voices": dataclasses.asdict(
      voices([each.speaker for each in recordings], rows)
    ),
    "dnsmos": {
      row: {
        score: float(np.mean([each[f"dnsmos.{score}"] for each in of_row]))
        for score in SCORES
      }
      for row, of_row in opinions.items()
    },
    "ordered": {
      score: _ordered(
        [[t[f"dnsmos.{score}"] for t in x] for x in opinions.values()]
      )
      for score in SCORES
    },
  }


def _ordered(value_RN: Sequence[Sequence[np.ndarray]]) -> float:
  """Share of clips whose values fall from row to row."""
  steps = np.diff(np.array(value_RN, np.float64), axis=0)
  return float((steps < 0).all(axis=0).mean())


def markdown(found: Mapping[str, Any]) -> str:
  """The scores as tables."""
  wer, heard = found["wer"], found["voices"]
  lines = [
    "| speaker | " + " | ".join(wer) + " |",
    "|---" * (len(wer) + 1) + "|",
    "| WER, % | "
    + " | ".join(f"{100 * value:.1f}" for value, _, _ in wer.values())
    + " |",
    "| 95 % | "
    + " | ".join(f"{100 * a:.1f} to {100 * b:.1f}" for _, a, b in wer.values())
    + " |",
    "",
    f"Voices: equal-error rate {100 * heard['equal_error_rate']:.1f} % at a"
    f" cosine of {heard['threshold']:.3f} ({heard['pairs'][0]} pairs of one"
    f" speaker, mean {heard['same']:.3f}; {heard['pairs'][1]} of two, mean"
    f" {heard['different']:.3f}).",
    "",
    "| DNSMOS | " + " | ".join(found["dnsmos"]) + " | clips in this order |",
    "|---" * (len(found["dnsmos"]) + 2) + "|",
  ]
  for score in SCORES:
    values = [row[score] for row in found["dnsmos"].values()]
    cells = " | ".join(f"{value:.2f}" for value in values)
    share = 100 * found["ordered"][score]
    lines.append(f"| {score.upper()} | {cells} | {share:.0f} % |")
  return "\n".join(lines) + "\n"


def main() -> None:
  cli.require_flags(FLAGS, recordings="DIR")
  recordings = read(
    pathlib.Path(FLAGS.recordings), FLAGS.clips_per_speaker, FLAGS.seed
  )
  if FLAGS.clips:
    out = pathlib.Path(FLAGS.clips)
    write(recordings, out)
    (out / "prompts.csv").write_text(prompt_table(recordings), "utf-8")
    return
  cli.require_flags(FLAGS, whisper="FOLDER")
  with tempfile.TemporaryDirectory() as temporary:
    cache = pathlib.Path(FLAGS.cache or temporary)
    found = measure(recordings, FLAGS.whisper, cache)
  print(markdown(found), end="")
  if FLAGS.out:
    found["machine"] = machine.describe()
    with files.atomic_path(storage.locate(FLAGS.out)) as path:
      path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
  flags.DEFINE_string("recordings", "", "Folder of recordings of digits.")
  flags.DEFINE_string("whisper", "", "Folder of Whisper (CTranslate2).")
  flags.DEFINE_string("clips", "", "Folder to write the clips to, no scores.")
  flags.DEFINE_integer("clips_per_speaker", 10, "Clips of each speaker.")
  flags.DEFINE_integer("seed", 0, "Seed of the choice of recordings.")
  flags.DEFINE_string("cache", "", "Folder of features, to be resumed.")
  flags.DEFINE_string("out", "", "JSON file to write.")
  cli.run(main)
