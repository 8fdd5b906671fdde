"""The study file: what is compared, by which questions, under which rules.

JSON, written by the organizer before the first vote:

  {
    "systems": {"ours": "samples/ours", "baseline": "samples/baseline"},
    "title": "Comparison of short clips",
    "seed": 0
  }

All other fields have defaults; see `Settings`.
"""

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from ovi_jax import config as config_lib
from ovi_jax import storage
from ovi_jax import untrusted

MATCHES = ("name", "prompt")
INCOMPLETE = ("refuse", "skip")
# Corruptions of gold items, by what they make worse.
VIDEO_NOISE, AUDIO_NOISE = "video_noise", "audio_noise"
AUDIO_SHIFT, AUDIO_SWAP = "audio_shift", "audio_swap"
GOLD = (VIDEO_NOISE, AUDIO_NOISE, AUDIO_SHIFT, AUDIO_SWAP)
MAX_SYSTEMS = 20
ALL_PAIRS = 5  # systems; with more, each prompt has a part of the pairs
_NAME = re.compile(r"[\w.+-]+(?: [\w.+-]+)*")
_MAX_TEXT = 4000
_MIN_NAMED = 3  # shorter names are words, such as "a"
_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """A question that is asked about every pair.

  Attributes:
    id: short name in the report.
    text: shown to raters.
    gold: corruption that makes a clip worse in this question, of `GOLD`; ""
      for a question without gold items.
  """

  id: str
  text: str
  gold: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exclusion:
  """Which raters the report leaves out; None turns a rule off.

  Attributes:
    min_gold_accuracy: least fraction of gold questions answered correctly.
    min_repeat_agreement: least fraction of equal answers to repeated items.
    max_side_share: largest fraction of one side among answers that prefer one.
    min_headphones: least number of correct trials of the headphone check.
  """

  min_gold_accuracy: float | None = 0.6
  min_repeat_agreement: float | None = None
  max_side_share: float | None = 0.95
  min_headphones: int | None = None

  def __post_init__(self):
    problems = []
    for name, low in (
      ("min_gold_accuracy", 0.0),
      ("min_repeat_agreement", 0.0),
      # A rater without a bias has half of the answers on a side.
      ("max_side_share", 0.5),
    ):
      value = getattr(self, name)
      if value is not None and not low <= value <= 1:
        problems.append(f"{name}: expected {low:g} to 1 or null, got {value:g}")
    if self.min_headphones is not None:
      problems += config_lib.below(self, 0, "min_headphones")
    config_lib.check(problems, "exclusion: ")


QUESTIONS = (
  Question(
    id="audio",
    text="Which clip has the better sound?",
    gold=AUDIO_NOISE,
  ),
  Question(
    id="video",
    text="Which clip has the better picture?",
    gold=VIDEO_NOISE,
  ),
  Question(
    id="sync",
    text="In which clip do sound and picture fit together better in time?",
    gold=AUDIO_SHIFT,
  ),
)
TITLE = "Comparison of short clips"
INSTRUCTIONS = (
  "You will see pairs of short clips that were made from the same description."
  " Play both clips to the end, as often as you like, then answer each"
  " question. There are no right or wrong answers: we ask for your impression."
  " Please use headphones in a quiet room."
)
CONSENT = (
  "Taking part is voluntary, and you can stop at any time by closing the page."
  " We store your answers, the time they took and the result of the sound"
  " check, together with a random number. We store no name, no address and no"
  " cookies. The answers are used for research and may be published."
)
_DEFAULT_TEXTS = {TITLE, INSTRUCTIONS, CONSENT, *(q.text for q in QUESTIONS)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """A study.

  Attributes:
    systems: folder of clips by the name of the system, relative to the study
      file.
    title: shown to raters; it must not name a system.
    instructions: likewise.
    consent: likewise; raters agree to it before they begin.
    questions: asked about every pair.
    pairs: of systems that are compared; empty for every pair of up to five
      systems, and for more systems two pairs of each for every prompt.
    match: clips of different systems belong together if their files have the
      same "name" without the ending, or the same "prompt" in the JSON beside
      them (clips of one prompt are numbered in order of their names).
    incomplete_prompts: "refuse" the study or "skip" the prompt where a system
      has no clip for it.
    show_prompt: show the prompt above the pair, where a JSON beside a clip has
      it.
    raters_per_item: number of raters that judge a pair.
    items_per_session: pairs that a rater judges, gold and repeats included.
    gold_share: fraction of a session that are gold items: a clip and a
      corrupted copy of it.
    repeat_share: fraction of a session that are repeats with sides exchanged.
    headphone_trials: trials of the headphone check; 0 leaves it out.
    loudness: integrated loudness that sound is scaled to, LUFS; None keeps it.
    exclusion: which raters the report leaves out.
    seed: of gold items and of the choice of pairs.
  """

  systems: Mapping[str, str]
  title: str = TITLE
  instructions: str = INSTRUCTIONS
  consent: str = CONSENT
  questions: tuple[Question, ...] = QUESTIONS
  pairs: tuple[tuple[str, str], ...] = ()
  match: str = "name"
  incomplete_prompts: str = "refuse"
  show_prompt: bool = True
  raters_per_item: int = 3
  items_per_session: int = 44
  gold_share: float = 0.05
  repeat_share: float = 0.05
  headphone_trials: int = 6
  loudness: float | None = -23.0
  exclusion: Exclusion = Exclusion()
  seed: int = 0

  def __post_init__(self):
    problems = [
      *_system_problems(self.systems),
      *_question_problems(self.questions),
      *_pair_problems(self.pairs, self.systems),
      *self._text_problems(),
      *config_lib.invalid_choice("match", self.match, MATCHES),
      *config_lib.invalid_choice(
        "incomplete_prompts", self.incomplete_prompts, INCOMPLETE
      ),
      *config_lib.below(self, 1, "raters_per_item", "items_per_session"),
      *config_lib.below(self, 0, "headphone_trials", "seed"),
    ]
    for name in ("gold_share", "repeat_share"):
      if not 0 <= (value := getattr(self, name)) <= 0.3:
        problems.append(f"{name}: expected 0 to 0.3, got {value:g}")
    if self.loudness is not None and not -60 <= self.loudness <= -5:
      problems.append(
        f"loudness: expected -60 to -5 LUFS or null, got {self.loudness:g}"
      )
    if self.items_per_session > 1000 or self.headphone_trials > 20:
      problems.append(
        "items_per_session: expected at most 1000, headphone_trials: at most 20"
      )
    least = self.exclusion.min_headphones
    if least is not None and least > self.headphone_trials:
      problems.append(
        "exclusion.min_headphones: expected at most headphone_trials,"
        f" {self.headphone_trials}, got {least}; every rater would be left out"
      )
    config_lib.check(problems, "")

  def _text_problems(self) -> list[str]:
    """Problems of the texts that raters see."""
    texts = {
      "title": self.title,
      "instructions": self.instructions,
      "consent": self.consent,
      **{f"questions.{q.id}.text": q.text for q in self.questions},
    }
    problems = []
    for where, text in texts.items():
      if not isinstance(text, str) or not 0 < len(text.strip()) <= _MAX_TEXT:
        problems.append(
          f"{where}: expected text of 1 to {_MAX_TEXT} characters"
        )
        continue
      # The words of the defaults are no names, whatever systems are called.
      named = [
        system
        for system in self.systems
        if text not in _DEFAULT_TEXTS
        and len(system) >= _MIN_NAMED
        and re.search(rf"\b{re.escape(system)}\b", text, re.IGNORECASE)
      ]
      if named:
        problems.append(
          f"{where} names the system {named[0]!r}, and raters see it; rename"
          " the system or change the text"
        )
    return problems


def _system_problems(systems: Any) -> list[str]:
  """Problems of the table of systems."""
  if not isinstance(systems, Mapping) or not 2 <= len(systems) <= MAX_SYSTEMS:
    return [
      f"systems: expected 2 to {MAX_SYSTEMS} names with their folders, such as"
      ' {"ours": "samples/ours", "baseline": "samples/baseline"}'
    ]
  problems = [
    f"systems: {untrusted.printable(name, 40)!r}: expected a name of letters,"
    " digits, single spaces and . _ + -, up to 60 characters"
    for name in systems
    if not _NAME.fullmatch(name) or len(name) > 60
  ]
  problems += [
    f"systems.{name}: expected the path of a folder"
    for name, folder in systems.items()
    if not isinstance(folder, str) or not folder
  ]
  return problems


def _question_problems(questions: Any) -> list[str]:
  """Problems of the list of questions."""
  if not 1 <= len(questions) <= 9:
    return [f"questions: expected 1 to 9, got {len(questions)}"]
  problems = []
  ids = [str(q.id) for q in questions]
  for question in questions:
    if not isinstance(question.id, str) or not _NAME.fullmatch(question.id):
      problems.append(
        f"questions: {untrusted.printable(str(question.id), 40)!r}: expected an"
        " id of letters, digits and . _ + -"
      )
    problems += config_lib.invalid_choice(
      f"questions.{question.id}.gold", question.gold, ("", *GOLD)
    )
  if len(set(ids)) != len(ids):
    problems.append("questions: expected each id once")
  return problems


def _pair_problems(pairs: Any, systems: Any) -> list[str]:
  """Problems of the pairs, which must connect all systems."""
  problems: list[str] = []
  seen = set()
  for pair in pairs:
    if (
      len(pair) != 2
      or not all(isinstance(s, str) and s in systems for s in pair)
      or pair[0] == pair[1]
    ):
      problems.append(
        f"pairs: {untrusted.printable(str(list(pair)), 80)}: expected two"
        " different systems"
      )
      continue
    if frozenset(pair) in seen:
      problems.append(f"pairs: {' and '.join(pair)} are listed twice")
    seen.add(frozenset(pair))
  if seen and not problems:
    linked = set(next(iter(seen)))
    while more := {s for p in seen if p & linked for s in p} - linked:
      linked |= more
    if rest := sorted(set(systems) - linked):
      problems.append(
        f"pairs: nothing connects {rest[0]!r} with {sorted(linked)[0]!r}, so"
        " that they cannot be ranked; add a pair"
      )
  return problems


def read(path: str | os.PathLike[str]) -> Settings:
  """Read a study file.

  Args:
    path: of the JSON file.

  Returns:
    The settings; folders of systems are joined to the file's folder.

  Raises:
    ValueError: the file is missing, is not JSON, or has a field that is
      unknown or invalid; all problems that were found are listed.
  """
  path = pathlib.Path(path)
  name = untrusted.printable(str(path))
  try:
    values = untrusted.read_json(path, max_bytes=_BYTES)
  except OSError as error:
    raise ValueError(
      f"{name}: {error.strerror}; expected a study file, see"
      " docs/how_to/preference_study.md"
    ) from error
  except ValueError as error:
    raise ValueError(f"{name}: {error}") from error
  try:
    found = from_json(values)
  except ValueError as error:
    raise ValueError(f"{name}: {error}") from error
  folders = {
    system: folder if storage.is_remote(folder) else str(path.parent / folder)
    for system, folder in found.systems.items()
  }
  return dataclasses.replace(found, systems=folders)


def from_json(values: Any) -> Settings:
  """Settings from what JSON holds.

  Raises:
    ValueError: a field is unknown, missing or invalid.
  """
  if not isinstance(values, dict):
    raise ValueError("expected an object with the fields of a study")
  values = dict(values)
  if "questions" in values:
    values["questions"] = tuple(
      config_lib.build(Question, _object(q, "questions"), f"questions[{i}]")
      for i, q in enumerate(_list(values["questions"], "questions"))
    )
  if "pairs" in values:
    values["pairs"] = tuple(
      tuple(_list(pair, "pairs")) for pair in _list(values["pairs"], "pairs")
    )
  if "exclusion" in values:
    exclusion = _object(values["exclusion"], "exclusion")
    values["exclusion"] = config_lib.build(Exclusion, exclusion, "exclusion")
  return config_lib.build(Settings, values)


def to_json(settings: Settings) -> dict[str, Any]:
  """The settings as JSON holds them; `from_json` reads them."""
  return dataclasses.asdict(settings) | {"systems": dict(settings.systems)}


def _list(value: Any, where: str) -> list[Any]:
  if not isinstance(value, list | tuple):
    raise ValueError(f"{where}: expected a list")
  return list(value)


def _object(value: Any, where: str) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise ValueError(f"{where}: expected an object")
  return value


def session_counts(settings: Settings, items: int, gold: int) -> dict[str, int]:
  """Number of real, gold and repeated items of a session.

  Args:
    settings: of the study.
    items: real items that exist.
    gold: gold items that exist.
  """
  size = settings.items_per_session
  golds = min(gold, _part(settings.gold_share, size))
  repeats = _part(settings.repeat_share, size)
  real = max(1, min(items, size - golds - repeats))
  return {"real": real, "gold": golds, "repeat": min(repeats, real // 2)}


def _part(share: float, size: int) -> int:
  """A share of a session, at least one unless it is 0."""
  return math.ceil(share * size - 1e-9) if share else 0
