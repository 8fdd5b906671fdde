"""Public lists of prompts, converted to the table that sample.py reads.

The table has the columns `name`, `text_prompt`, `image_path` and `seed`. The
name identifies a prompt in the list; evaluation finds the clips of a prompt by
it, or by the prompt in the JSON file beside a clip. The lists themselves are
not part of the package.
"""

import csv
import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from ovi_jax import config
from ovi_jax import files
from ovi_jax import prompt as prompts
from ovi_jax import storage
from ovi_jax import tables
from ovi_jax import untrusted

COLUMNS = ("name", "text_prompt", "image_path", "seed")
_SEEDS = 2**32
_UNSAFE = re.compile(r"[^\w.-]+")


class Entry(NamedTuple):
  """A prompt of a list."""

  name: str
  text: str
  image: str = ""


# A file and the tag of sounds to entries.
Reader = Callable[[pathlib.Path, str], Iterator[Entry]]


def convert(
  source: pathlib.Path,
  form: str,
  out: storage.AnyPath,
  *,
  audio_tag: str = prompts.SOUND,
  seed: int = 0,
) -> int:
  """Convert a list.

  Args:
    source: the list.
    form: a key of `FORMATS`.
    out: CSV to write.
    audio_tag: how sounds are written: `prompt.SOUND` or `prompt.SOUND_LINE`.
    seed: of the first prompt; the next have the next seeds.

  Returns:
    Number of prompts. Those of the same text differ by their seeds.

  Raises:
    ValueError: the format is unknown, or the list is not of it; names the file.
    OSError: the table cannot be written.
  """
  config.check(config.invalid_choice("format", form, FORMATS), "")
  try:
    entries = list(FORMATS[form](source, audio_tag))
  except OSError as error:
    raise ValueError(f"{source}: {error.strerror or error}") from error
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{source}: expected a list of the format {form}: {error!r}"
    ) from error
  if not entries or not all(entry.text for entry in entries):
    raise ValueError(f"{source}: expected prompts, found none or empty ones")
  if len({entry.name for entry in entries}) != len(entries):
    raise ValueError(f"{source}: two prompts have one name")
  with (
    files.atomic_path(out) as temporary,
    open(temporary, "w", encoding="utf-8", newline="") as file,
  ):
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for number, entry in enumerate(entries):
      place = (seed + number) % _SEEDS
      writer.writerow((entry.name, entry.text, entry.image, place))
  return len(entries)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTable:
  """Prompts by name, and names by prompt.

  Attributes:
    texts: prompts by name.
    names: names by `prompt_key` and seed; by `prompt_key` and "" for rows
      without a seed.
  """

  texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  names: Mapping[tuple[Any, str], str] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def tagged(self) -> bool:
    """Whether speech is between tags: if any text of the table has a tag."""
    return any(
      part.tag for text in self.texts.values() for part in prompts.parse(text)
    )

  def name_of(self, text: str, seed: object) -> str | None:
    """The name of the prompt that a clip was made of, or None."""
    key = prompt_key(text)
    return self.names.get((key, str(seed))) or self.names.get((key, ""))


def read_prompts(path: storage.AnyPath) -> PromptTable:
  """Read a table with the columns `name`, `text_prompt` and perhaps `seed`.

  Raises:
    ValueError: the table cannot be read, or a name is empty or occurs twice.
  """
  texts: dict[str, str] = {}
  names: dict[tuple[Any, str], str] = {}

  def add(row: tables.Row) -> None:
    name, text = row.cells["name"].strip(), row.cells["text_prompt"]
    if not name:
      raise ValueError("the name is empty")
    if name in texts:
      raise ValueError(f"the name {untrusted.printable(name)} occurs twice")
    texts[name] = text
    names.setdefault((prompt_key(text), row.cells["seed"].strip()), name)

  rows = tables.read_table(
    path, required=("name", "text_prompt"), optional=("seed",)
  )
  tables.parse_rows(path, rows, add)
  return PromptTable(texts=texts, names=names)


def _name(*parts: object) -> str:
  """A name that is valid for a file."""
  return _UNSAFE.sub("_", "_".join(str(part).strip() for part in parts))


def _verse_bench(path: pathlib.Path, audio_tag: str) -> Iterator[Entry]:
  """`{set: {id: {prompt, video_prompt, audio_prompt, speech_prompt}}}`."""
  try:
    content = untrusted.read_json(path)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  for group, items in content.items():
    for identity, item in items.items():
      yield Entry(_name(group, identity), _joint_prompt(item, audio_tag))


def _joint_prompt(item: Mapping[str, Any], audio_tag: str) -> str:
  """Picture, speech and sound of a prompt of Verse-Bench."""
  picture = item.get("video_prompt") or item["prompt"]
  parts = [str(picture).strip()]
  speech = item.get("speech_prompt") or {}
  if spoken := str(speech.get("text") or "").strip():
    speaker = str(speech.get("speaker") or "someone").strip()
    parts.append(f"{speaker[:1].upper()}{speaker[1:]} says: {_speech(spoken)}")
  sounds = item.get("audio_prompt") or []
  sounds = [sounds] if isinstance(sounds, str) else sounds
  if described := " ".join(str(sound).strip() for sound in sounds):
    parts.append(prompts.sound(described, audio_tag))
  return " ".join(parts)


def _speech(text: str) -> str:
  return f"{prompts.SPEECH}{text}{prompts.CLOSING[prompts.SPEECH]}"


def _audiocaps(path: pathlib.Path, audio_tag: str) -> Iterator[Entry]:
  """CSV with youtube_id, start_time and caption; several captions a clip."""
  counts: dict[str, int] = {}
  required = ("youtube_id", "start_time", "caption")
  for row in tables.read_table(path, required=required):
    clip = _name(row.cells["youtube_id"], row.cells["start_time"])
    number = counts[clip] = counts.get(clip, -1) + 1
    text = prompts.sound(row.cells["caption"].strip(), audio_tag)
    yield Entry(f"{clip}_{number}", text)


def _vggsound(path: pathlib.Path, audio_tag: str) -> Iterator[Entry]:
  """TSV with id and label. Labels repeat."""
  for row in tables.read_table(path, required=("id", "label")):
    text = prompts.sound(row.cells["label"].strip(), audio_tag)
    yield Entry(_name(row.cells["id"]), text)


def _seed_tts(path: pathlib.Path, audio_tag: str) -> Iterator[Entry]:
  """Lines `utterance|prompt text|prompt wav|text[|wav]`."""
  del audio_tag
  for number, line in enumerate(tables.read_list(path), 1):
    cells = line.strip().split("|")
    if len(cells) not in (4, 5):
      raise ValueError(
        f"{path}: line {number}: expected utterance|prompt text|prompt"
        f" wav|text, found {len(cells)} cells"
      )
    yield Entry(_name(cells[0]), _speech(cells[3].strip()))


def _ovi(path: pathlib.Path, audio_tag: str) -> Iterator[Entry]:
  """CSV with text_prompt and image_path, as sample.py reads it."""
  del audio_tag
  rows = tables.read_table(
    path, required=("text_prompt",), optional=("image_path",)
  )
  for row in rows:
    name = _name(path.stem, f"{row.number:03}")
    yield Entry(name, row.cells["text_prompt"], row.cells["image_path"])


FORMATS: Mapping[str, Reader] = {
  "verse_bench": _verse_bench,
  "audiocaps": _audiocaps,
  "vggsound": _vggsound,
  "seed_tts": _seed_tts,
  "ovi": _ovi,
}


def prompt_key(text: str) -> Sequence[tuple[str, str]]:
  """What two spellings of a prompt have in common.

  The tag of sounds depends on the model that a prompt is written for.
  """
  found = []
  for part in prompts.parse(text):
    kind = "sound" if part.is_sound else part.tag
    words = part.description if part.is_sound else part.text
    if words.strip():
      found.append((kind, " ".join(words.split())))
  return tuple(found)
