"""Whether a clip speaks in the voice of its reference.

  python -m ovi_jax.synthetic.evaluation voices --out=DIR [--count=64
    --seed=1000]
  python sample.py --prompts=DIR/own.csv --out=CLIPS …
  python -m ovi_jax.synthetic.evaluation voices --clips=CLIPS

The first command writes two tables of prompts that name no voice, each with a
seed and a reference: 2 s of the sound of another clip. In `own.csv` it has the
voice that the world gave the prompt's clip, in `shuffled.csv` another one. The
score is how often the voice of the reference is heard.
"""

import csv
import io
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from ovi_jax import files
from ovi_jax import geometry
from ovi_jax.media import mp4
from ovi_jax.media import wav
from ovi_jax.sampling import requests
from ovi_jax.synthetic.evaluation import audio_detectors
from ovi_jax.synthetic.evaluation import prompt_parser
from ovi_jax.synthetic.evaluation import scores
from ovi_jax.synthetic.world import faces
from ovi_jax.synthetic.world import scene
from ovi_jax.synthetic.world import world as worlds

OWN, SHUFFLED = "own", "shuffled"  # tables, and beginnings of references' names
SCORES = {OWN: "voice by reference", SHUFFLED: "shuffled reference"}
SECONDS = 2.0  # of a reference
_LEAD = 0.1  # seconds before its first vowel
_VOWELS = 2  # that a reference has, at least
_REFERENCES = 1  # added to the seed of the prompts' world


def heard(wave_A: np.ndarray | None, rate: int) -> str | None:
  """The voice of most vowels of a clip, of `scene.VOICES`."""
  usual = audio_detectors.usual(
    audio_detectors.listen(wave_A, rate, scene.FACE)
  )
  return None if usual is None else usual.voice


def references(seed: int) -> Iterator[tuple[str, np.ndarray]]:
  """Voices and wave_A of `SECONDS`, without end: of clips of the world."""
  world = worlds.World(seed=seed, size=16, what=worlds.VOICES, complete=True)
  index = 0
  while True:
    made = world.clip(index, slice(1))
    index += 1
    assert made.wave_A is not None  # complete
    start = max(0.0, made.events[0].seconds - _LEAD)
    ends = [event.seconds + faces.VOWEL for event in made.events]
    if sum(end <= start + SECONDS for end in ends) < _VOWELS:
      continue
    first = round(start * world.rate)
    wave_A = made.wave_A[first : first + round(SECONDS * world.rate)]
    if len(wave_A) == round(SECONDS * world.rate):
      yield made.scene.sound, wave_A


def prompts(seed: int) -> Iterator[tuple[str, str]]:
  """Prompts that name no voice, each once, and the voices of their clips."""
  world = worlds.World(seed=seed, size=16, what=worlds.VOICES, complete=True)
  seen: set[str] = set()
  index = 0
  while True:
    made = world.clip(index, slice(1), sound=False)
    index += 1
    for caption in made.captions:
      if caption not in seen and prompt_parser.facts(caption).sound is None:
        seen.add(caption)
        yield caption, made.scene.sound


def write(folder: pathlib.Path, count: int, seed: int) -> None:
  """Write references and tables of prompts.

  Args:
    folder: to write.
    count: prompts of each table.
    seed: of the world of the prompts; references are of the next.

  Raises:
    ValueError: the count is not positive.
    OSError: the folder is not writable, or the disk full.
  """
  if count < 1:
    raise ValueError(f"count must be at least 1 prompt, got {count}")
  random = np.random.default_rng(seed)
  sounds = references(seed + _REFERENCES)
  waiting: dict[str, list[np.ndarray]] = {name: [] for name in scene.VOICES}
  texts = prompts(seed)
  asked = [next(texts) for _ in range(count)]
  folder.mkdir(parents=True, exist_ok=True)
  for table in SCORES:
    rows = []
    for number, (prompt, voice) in enumerate(asked):
      if table == SHUFFLED:
        others = [name for name in scene.VOICES if name != voice]
        voice = str(random.choice(others))
      while not waiting[voice]:
        found, wave_A = next(sounds)
        waiting[found].append(wave_A)
      name = f"{table}_{voice}_{number:03}.wav"
      wav.write(folder / name, waiting[voice].pop(0))
      rows.append((prompt, (seed + number) % requests.SEEDS, name))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
      [
        requests.PROMPT_COLUMN,
        requests.SEED_COLUMN,
        requests.COLUMNS["voice"],
      ]
    )
    writer.writerows(rows)
    with files.atomic_path(folder / f"{table}.csv") as temporary:
      temporary.write_text(text.getvalue(), "utf-8")


def score(folder: pathlib.Path) -> list[scores.Score]:
  """How often the voice of the reference is heard, by table.

  Raises:
    ValueError: there are no clips, or one was not made from such a table.
  """
  parts: dict[str, list[scores.Part | None]] = {name: [] for name in SCORES}
  for path in sorted(folder.glob("*.mp4")):
    table, voice = asked_of(path)
    _, _, wave_A, rate = mp4.read(path)
    found = heard(wave_A, rate or geometry.SAMPLE_RATE)
    parts[table].append(scores.Part(found == voice, 1))
  if not any(parts.values()):
    raise ValueError(f"{folder} has no *.mp4; make some with sample.py")
  return [scores.score(SCORES[name], each) for name, each in parts.items()]


def asked_of(clip: pathlib.Path) -> tuple[str, str]:
  """The table that a clip is of, and the voice of its reference.

  Raises:
    ValueError: the JSON beside it names no reference of `write`.
  """
  path = clip.with_suffix(".json")
  try:
    given = json.loads(path.read_text("utf-8"))["given"]["voice"]["path"]
    table, voice, _ = pathlib.PurePath(given).stem.split("_")
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path}: expected a clip with a reference of `voices --out`"
    ) from error
  if table not in SCORES or voice not in scene.VOICES:
    raise ValueError(f"{path}: {given} is no reference of `voices --out`")
  return table, voice
