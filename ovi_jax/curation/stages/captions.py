"""Captions from a multimodal model, or from a table.

With `source`, the captions of a clip are those that the table has for its file
(`ovi_jax/data/captions.py`), and no endpoint is asked. Else:

In: the frames that `cut` kept (or none) and the whole sound, sent in one
request to an OpenAI-compatible endpoint. Out: the checked caption, as prompts
of the released tag formats, or a reject. Answers are kept by their request, so
that none is paid for twice; while the endpoint is away the shard stays undone.
(Ovi, arXiv 2510.01284: seven evenly spaced frames and the whole sound.)
"""

import asyncio
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from ovi_jax import geometry
from ovi_jax import prompt
from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.curation.captioning import cache
from ovi_jax.curation.captioning import chat
from ovi_jax.curation.captioning import credentials
from ovi_jax.curation.captioning import endpoint
from ovi_jax.curation.captioning import responses
from ovi_jax.curation.media import artifacts
from ovi_jax.data import captions as captions_lib
from ovi_jax.media import container as containers

VERSION = 1
KIND = "shard"
NAME = "captions"
UNANSWERED = ("wait", "reject")
_KINDS = (((b"",), b"-"), ((b"",), b""), ((), b"-"))  # with frames, sound
Pair = tuple[clips.Clip, stage.Media]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(endpoint.Settings):
  """What is asked, and what an answer must be; and `endpoint.Settings`.

  Attributes:
    source: table of captions (CSV or TSV with the columns path and caption);
      "" asks the endpoint.
    variants: released variants whose prompts are written; equal ones once.
    task: instruction in place of `instruction.task`; "" for that one.
    temperature: of sampling.
    max_tokens: of an answer.
    structured: send the JSON schema as `response_format`; the endpoint must
      know it.
    extra: JSON values added to each request, such as {"modalities": ["text"]}.
    retries: times an unfit answer is sent back with what is wrong with it.
    visual: fewest and most characters of the visual part.
    audio: fewest and most characters of the sound's description.
    tokenizer: a `tokenizer.json`, to refuse prompts that training would cut;
      "" to leave them.
    text_rows: tokens that training reads.
    unanswered: clips that the endpoint fails on while it answers others:
      "wait" leaves the shard undone, "reject" goes on without them.
    cache: folder of the answers, on this machine or mounted there.
    price_in: of a million tokens of requests; for the report.
    price_out: of a million tokens of answers.
  """

  source: str = ""
  variants: tuple[str, ...] = ("720x720_5s",)
  task: str = ""
  temperature: float = 0.0
  max_tokens: int = 1024
  structured: bool = True
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  retries: int = 1
  visual: tuple[int, int] = (20, 3000)
  audio: tuple[int, int] = (8, 1500)
  tokenizer: str = ""
  text_rows: int = 512
  unanswered: str = "wait"
  cache: str = "captions-cache"
  price_in: float = 0.0
  price_out: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    credentials.check_settings(
      {
        "url": self.url,
        "model": self.model,
        "task": self.task,
        "extra": self.extra,
      }
    )
    # JSON has lists only.
    for name in ("variants", "visual", "audio"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    if not self.variants:
      raise ValueError("variants: expected at least one, got none")
    for name in self.variants:
      geometry.variant(name)
    if self.unanswered not in UNANSWERED:
      raise ValueError(
        f"unanswered: expected one of {UNANSWERED}, got {self.unanswered!r}"
      )
    for name in ("visual", "audio"):
      bounds = getattr(self, name)
      if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
        raise ValueError(
          f"{name}: expected fewest and most characters, got {bounds}"
        )
    if min(self.max_tokens, self.text_rows) < 1 or self.retries < 0:
      raise ValueError(
        "expected max_tokens and text_rows of at least 1 and retries of at"
        f" least 0, got {self.max_tokens}, {self.text_rows}, {self.retries}"
      )
    _asking(self)
    if not self.cache:
      raise ValueError("cache: expected a folder; it keeps what was paid for")
    if "://" in self.cache:
      raise ValueError(
        "cache: expected a folder of this machine, or one that is mounted"
        f" there, got the URL {self.cache!r}"
      )


def identity(config: Config) -> dict[str, Any]:
  """What the captions depend on: not where the endpoint is, nor how fast."""
  if config.source:
    return _table_identity(config)
  ways = {field.name for field in dataclasses.fields(endpoint.Settings)}
  ways |= {"cache", "price_in", "price_out", "tokenizer", "source"}
  values = dataclasses.asdict(config)
  result = {name: value for name, value in values.items() if name not in ways}
  asked = [chat.request(_asking(config), *given) for given in _KINDS]
  return {**result, "asked": asked, "tokenizer": _tokenizer_digest(config)}


def _table_identity(config: Config) -> dict[str, Any]:
  """What captions from a table depend on: its content, and how it is read."""
  table = containers.given("captions.source", config.source)
  return {
    "source": containers.digest(table),
    "variants": config.variants,
    "tokenizer": _tokenizer_digest(config),
    "text_rows": config.text_rows,
  }


def _tokenizer_digest(config: Config) -> str:
  """Of the tokenizer's content; "" without one."""
  if not config.tokenizer:
    return ""
  return containers.digest(
    containers.given("captions.tokenizer", config.tokenizer)
  )


def missing(config: Config) -> list[str]:
  """The table, or the model, key and client, if they are not there."""
  problems = []
  if config.tokenizer and not os.path.isfile(config.tokenizer):
    problems.append(
      f"captions.tokenizer: {config.tokenizer} is not a file; name it with"
      " --config.stages.captions.tokenizer=FILE"
    )
  if config.source:
    try:
      captions_lib.read(config.source)
    except ValueError as error:
      problems.append(
        f"captions.source: {error}; name a table with"
        " --config.stages.captions.source=FILE.csv"
      )
    return problems
  table = "or take captions from --config.stages.captions.source=FILE.csv"
  if not config.model:
    problems.append(
      "captions.model: expected the name that the endpoint serves it as; give"
      " --config.stages.captions.url=http://HOST:8000/v1"
      f" --config.stages.captions.model=MODEL, {table}"
    )
  for check in (
    endpoint.library,
    functools.partial(credentials.read, config.key_variable),
  ):
    try:
      check()
    except (ImportError, ValueError) as error:
      problems.append(f"captions: {error}, {table}")
  return problems


def _asking(config: Config) -> chat.Asking:
  """What all requests have in common."""
  return chat.Asking(
    model=config.model,
    task=config.task,
    temperature=config.temperature,
    max_tokens=config.max_tokens,
    structured=config.structured,
    extra=config.extra,
  )


def load(
  config: Config, clock: endpoint.Clock | None = None
) -> Callable[[Sequence[Pair]], list[clips.Clip | clips.Reject]]:
  """The stage.

  Args:
    config: of it.
    clock: of waits; tests bring their own.

  Raises:
    ValueError: no model is named, the API key is not in the environment, the
      tokenizer is none, or the cache cannot be a folder.
    ImportError: httpx is not installed.
  """
  if config.source:
    return _from_table(config)
  if not config.model:
    raise ValueError(
      "captions.model: expected the name that the endpoint serves it as"
    )
  endpoint.library()
  try:
    pathlib.Path(config.cache).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f"captions.cache: expected a folder; {error}") from error
  ask = functools.partial(
    _caption_all,
    config,
    credentials.read(config.key_variable),
    prompt.Tokenizer.load(config.tokenizer) if config.tokenizer else None,
    clock or endpoint.Clock(),
  )
  return lambda pairs: asyncio.run(ask(pairs))


def _from_table(
  config: Config,
) -> Callable[[Sequence[Pair]], list[clips.Clip | clips.Reject]]:
  """The stage, for captions that are in a table."""
  table = captions_lib.Table.load(config.source)
  tokenizer = (
    prompt.Tokenizer.load(config.tokenizer) if config.tokenizer else None
  )

  def caption(clip: clips.Clip) -> clips.Clip | clips.Reject:
    rows = table.find(clip.path)
    prompts, notes = captions_lib.prompts(
      [row.caption for row in rows], config.variants
    )
    if not prompts:
      found = "its rows have no text" if rows else "no row has its path"
      return clips.Reject(
        clip=clip, stage=NAME, reason="not in the table", detail=found
      )
    if tokenizer:
      for note in tokenizer.notes(prompts, config.text_rows):
        return clips.Reject(
          clip=clip, stage=NAME, reason="prompt is too long", detail=note
        )
    return clip.found(NAME, prompts=prompts, notes=notes)

  return lambda pairs: [caption(clip) for clip, _ in pairs]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Desk:
  """What all requests of a shard share.

  Attributes:
    config: of the stage.
    tokenizer: to measure prompts, or None.
    client: that asks.
    locks: by name of the request; the same one is sent once.
  """

  config: Config
  tokenizer: prompt.Tokenizer | None
  client: endpoint.Client
  locks: dict[str, asyncio.Lock]

  async def reply(self, request: bytes) -> cache.Reply:
    """The answer to a request, from the cache if it is there."""
    folder, name = pathlib.Path(self.config.cache), cache.key(request)
    async with self.locks.setdefault(name, asyncio.Lock()):
      with self._keeping():
        kept = cache.load(folder, name)
        found = kept and self._redacted(kept)
        if found and found != kept:
          cache.store(folder, name, found)
      if found is None:
        found = await self.client.ask(request)
        with self._keeping():
          cache.store(folder, name, found)
      elif self.config.unanswered == "reject":
        self.client.known = True
      return found

  def _redacted(self, reply: cache.Reply) -> cache.Reply:
    """A reply without the key; an earlier version may have kept it."""
    text = self.client.redaction.text(reply.text)
    return dataclasses.replace(reply, text=text)

  def outcome(
    self, found: clips.Clip | clips.Reject
  ) -> clips.Clip | clips.Reject:
    """What is recorded, without the key: cleaning may have put it together."""
    redact = self.client.redaction.json
    if isinstance(found, clips.Reject):
      clip = self.outcome(found.clip)
      return dataclasses.replace(found, clip=clip, detail=redact(found.detail))
    # What other stages found has not been near the endpoint.
    facts = dict(found.facts)
    if NAME in facts:
      facts[NAME] = redact(facts[NAME])
    return dataclasses.replace(found, facts=facts)

  @contextlib.contextmanager
  def _keeping(self) -> Iterator[None]:
    """No more is asked once answers cannot be kept: all would be paid twice."""
    try:
      yield
    except OSError as error:
      self.client.gone = f"answers cannot be kept: {error}"
      raise stage.Unavailable(self.client.gone) from error


async def _caption_all(
  config: Config,
  key: str,
  tokenizer: prompt.Tokenizer | None,
  clock: endpoint.Clock,
  pairs: Sequence[Pair],
) -> list[clips.Clip | clips.Reject]:
  """The outcome of every clip, in order; several are asked about at a time."""
  outcomes: dict[int, clips.Clip | clips.Reject] = {}
  waiting = iter(range(len(pairs)))
  failures: dict[int, OSError] = {}
  async with endpoint.Client(config, key, clock) as client:
    desk = _Desk(config=config, tokenizer=tokenizer, client=client, locks={})

    async def work() -> None:
      for number in waiting:
        if client.gone:
          return
        try:
          outcomes[number] = desk.outcome(await _caption(desk, *pairs[number]))
        except (stage.Unavailable, endpoint.Unanswered) as error:
          failures[number] = error

    async with asyncio.TaskGroup() as tasks:
      for _ in range(min(config.concurrency, len(pairs))):
        tasks.create_task(work())
  if client.gone or (failures and config.unanswered == "wait"):
    raise stage.Unavailable(_undone(config, pairs, len(outcomes), failures))
  for number, error in failures.items():
    outcomes[number] = _failed(pairs[number][0], "no answer", error)
  return [outcomes[number] for number in range(len(pairs))]


def _undone(
  config: Config,
  pairs: Sequence[Pair],
  done: int,
  failures: Mapping[int, OSError],
) -> str:
  """Why a shard stays undone, and what is kept of it."""
  number = min(failures)
  others = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
  return (
    f"{done} of {len(pairs)} clips have an answer, which is kept in"
    f" {config.cache}; not clip {pairs[number][0].id}{others}:"
    f" {failures[number]}. Run again when the endpoint is well; nothing is"
    " asked twice. If it fails on the same clips for ever, set unanswered to"
    " 'reject'"
  )


async def _caption(
  desk: _Desk, clip: clips.Clip, media: stage.Media
) -> clips.Clip | clips.Reject:
  """Ask about one clip, and again if the answer is unfit."""
  try:
    frames, pcm = artifacts.frames(clip, media), artifacts.sound(clip, media)
  except (KeyError, OSError, ValueError) as error:
    return _failed(clip, "media cannot be read", error)
  if not frames and not pcm:
    return clips.Reject(clip=clip, stage=NAME, reason="nothing to caption")
  body = chat.request(_asking(desk.config), frames, pcm)
  paid = {"tokens_in": 0, "tokens_out": 0}
  tries = 0
  while True:
    try:
      reply = await desk.reply(json.dumps(body).encode())
    except endpoint.Refused as error:
      return _failed(clip, "request refused", error)
    paid = {name: paid[name] + getattr(reply, name) for name in paid}
    try:
      found = _read(desk, reply, bool(frames), bool(pcm))
    except responses.Unfit as error:
      if tries == desk.config.retries:
        # What it took was paid for all the same; the report counts it.
        return clips.Reject(
          clip=clip.found(NAME, **paid),
          stage=NAME,
          reason=error.reason,
          detail=f"{error}; the answer was: {reply.text[:1000]}",
        )
      tries += 1
      body = chat.sent_back(body, reply.text, error)
    else:
      return clip.found(NAME, **found, **paid)


def _failed(clip: clips.Clip, reason: str, error: Exception) -> clips.Reject:
  """A clip of which nothing is known."""
  detail = f"{type(error).__name__}: {error}"
  return clips.Reject(
    clip=clip, stage=NAME, reason=reason, detail=detail, failed=True
  )


def _read(
  desk: _Desk, reply: cache.Reply, seen: bool, heard: bool
) -> dict[str, Any]:
  """The facts that an answer gives; `answers.Unfit` if it gives none.

  Of an answer that was cut, nothing is used, however whole it looks.
  """
  config = desk.config
  if reply.finish == "length":
    raise responses.Unfit(
      "answer was cut",
      f"it was cut after {config.max_tokens} tokens; it must be shorter",
    )
  wanted = responses.Wanted(
    seen=seen, heard=heard, visual=config.visual, audio=config.audio
  )
  caption = responses.read(reply.text, wanted)
  variants = map(geometry.variant, config.variants)
  prompts = list(
    dict.fromkeys(responses.combined(caption, v) for v in variants)
  )
  if desk.tokenizer:
    for note in desk.tokenizer.notes(prompts, config.text_rows):
      raise responses.Unfit("prompt is too long", f"{note}; it must be shorter")
  return {
    "prompts": prompts,
    "visual": caption.visual,
    "audio": caption.audio,
    "speech": list(caption.speech),
    "attributes": caption.attributes,
  }
