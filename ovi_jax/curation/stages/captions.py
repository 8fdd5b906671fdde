"""Captions from a multimodal model, or from a table.

With `captions_file`, the captions of a clip are those that the table has for its file
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
KIND = "batch"
NAME = "captions"
ON_TIMEOUT = ("wait", "reject")
_MEDIA_KINDS = (((b"",), b"-"), ((b"",), b""), ((), b"-"))  # with frames, sound
Pair = tuple[clips.Clip, stage.Media]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(endpoint.Settings):
  """What is asked, and what an answer must be; and `endpoint.Settings`.

  Attributes:
    captions_file: table of captions (CSV or TSV with the columns path and caption);
      "" asks the endpoint.
    variants: released variants whose prompts are written; equal ones once.
    instruction: instruction in place of `instruction.task`; "" for that one.
    temperature: of sampling.
    max_tokens: of an answer.
    structured_output: send the JSON schema as `response_format`; the endpoint must
      know it.
    extra_body: JSON values added to each request, such as {"modalities": ["text"]}.
    repair_attempts: times an unfit answer is sent back with what is wrong with it.
    visual_chars: fewest and most characters of the visual part.
    audio_chars: fewest and most characters of the sound's description.
    tokenizer: a `tokenizer.json`, to refuse prompts that training would cut;
      "" to leave them.
    max_text_len: tokens that training reads.
    on_timeout: clips that the endpoint fails on while it answers others:
      "wait" leaves the shard undone, "reject" goes on without them.
    cache_dir: folder of the answers, on this machine or mounted there.
    usd_per_mtok_in: of a million tokens of requests; for the report.
    usd_per_mtok_out: of a million tokens of answers.
  """

  captions_file: str = ""
  variants: tuple[str, ...] = ("720x720_5s",)
  instruction: str = ""
  temperature: float = 0.0
  max_tokens: int = 1024
  structured_output: bool = True
  extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  repair_attempts: int = 1
  visual_chars: tuple[int, int] = (20, 3000)
  audio_chars: tuple[int, int] = (8, 1500)
  tokenizer: str = ""
  max_text_len: int = 512
  on_timeout: str = "wait"
  cache_dir: str = "captions-cache"
  usd_per_mtok_in: float = 0.0
  usd_per_mtok_out: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    credentials.check_settings(
      {
        "url": self.url,
        "model": self.model,
        "instruction": self.instruction,
        "extra_body": self.extra_body,
      }
    )
    # JSON has lists only.
    for name in ("variants", "visual_chars", "audio_chars"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    if not self.variants:
      raise ValueError("variants: expected at least one, got none")
    for name in self.variants:
      geometry.variant(name)
    if self.on_timeout not in ON_TIMEOUT:
      raise ValueError(
        f"on_timeout: expected one of {ON_TIMEOUT}, got {self.on_timeout!r}"
      )
    for name in ("visual_chars", "audio_chars"):
      bounds = getattr(self, name)
      if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
        raise ValueError(
          f"{name}: expected fewest and most characters, got {bounds}"
        )
    if min(self.max_tokens, self.max_text_len) < 1 or self.repair_attempts < 0:
      raise ValueError(
        "expected max_tokens and max_text_len of at least 1 and repair_attempts of at"
        f" least 0, got {self.max_tokens}, {self.max_text_len}, {self.repair_attempts}"
      )
    _request_config(self)
    if not self.cache_dir:
      raise ValueError(
        "cache_dir: expected a folder; it keeps what was paid for"
      )
    if "://" in self.cache_dir:
      raise ValueError(
        "cache_dir: expected a folder of this machine, or one that is mounted"
        f" there, got the URL {self.cache_dir!r}"
      )


def fingerprint(config: Config) -> dict[str, Any]:
  """What the captions depend on: not where the endpoint is, nor how fast."""
  if config.captions_file:
    return _file_fingerprint(config)
  ways = {field.name for field in dataclasses.fields(endpoint.Settings)}
  ways |= {
    "cache_dir",
    "usd_per_mtok_in",
    "usd_per_mtok_out",
    "tokenizer",
    "captions_file",
  }
  values = dataclasses.asdict(config)
  result = {name: value for name, value in values.items() if name not in ways}
  asked = [
    chat.build_request(_request_config(config), *given)
    for given in _MEDIA_KINDS
  ]
  return {**result, "asked": asked, "tokenizer": _tokenizer_digest(config)}


def _file_fingerprint(config: Config) -> dict[str, Any]:
  """What captions from a table depend on: its content, and how it is read."""
  table = containers.given("captions.captions_file", config.captions_file)
  return {
    "source": containers.digest(table),
    "variants": config.variants,
    "tokenizer": _tokenizer_digest(config),
    "max_text_len": config.max_text_len,
  }


def _tokenizer_digest(config: Config) -> str:
  """Of the tokenizer's content; "" without one."""
  if not config.tokenizer:
    return ""
  return containers.digest(
    containers.given("captions.tokenizer", config.tokenizer)
  )


def missing_requirements(config: Config) -> list[str]:
  """The table, or the model, key and client, if they are not there."""
  problems = []
  if config.tokenizer and not os.path.isfile(config.tokenizer):
    problems.append(
      f"captions.tokenizer: {config.tokenizer} is not a file; name it with"
      " --config.stages.captions.tokenizer=FILE"
    )
  if config.captions_file:
    try:
      captions_lib.read(config.captions_file)
    except ValueError as error:
      problems.append(
        f"captions.captions_file: {error}; name a table with"
        " --config.stages.captions.captions_file=FILE.csv"
      )
    return problems
  table = (
    "or take captions from --config.stages.captions.captions_file=FILE.csv"
  )
  if not config.model:
    problems.append(
      "captions.model: expected the name that the endpoint serves it as; give"
      " --config.stages.captions.url=http://HOST:8000/v1"
      f" --config.stages.captions.model=MODEL, {table}"
    )
  for check in (
    endpoint.import_httpx,
    functools.partial(credentials.read, config.api_key_env),
  ):
    try:
      check()
    except (ImportError, ValueError) as error:
      problems.append(f"captions: {error}, {table}")
  return problems


def _request_config(config: Config) -> chat.RequestConfig:
  """What all requests have in common."""
  return chat.RequestConfig(
    model=config.model,
    instruction=config.instruction,
    temperature=config.temperature,
    max_tokens=config.max_tokens,
    structured_output=config.structured_output,
    extra_body=config.extra_body,
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
  if config.captions_file:
    return _from_file(config)
  if not config.model:
    raise ValueError(
      "captions.model: expected the name that the endpoint serves it as"
    )
  endpoint.import_httpx()
  try:
    pathlib.Path(config.cache_dir).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(
      f"captions.cache_dir: expected a folder; {error}"
    ) from error
  ask = functools.partial(
    _caption_all,
    config,
    credentials.read(config.api_key_env),
    prompt.Tokenizer.load(config.tokenizer) if config.tokenizer else None,
    clock or endpoint.Clock(),
  )
  return lambda pairs: asyncio.run(ask(pairs))


def _from_file(
  config: Config,
) -> Callable[[Sequence[Pair]], list[clips.Clip | clips.Reject]]:
  """The stage, for captions that are in a table."""
  table = captions_lib.Table.load(config.captions_file)
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
      for note in tokenizer.notes(prompts, config.max_text_len):
        return clips.Reject(
          clip=clip, stage=NAME, reason="prompt is too long", detail=note
        )
    return clip.with_facts(NAME, prompts=prompts, notes=notes)

  return lambda pairs: [caption(clip) for clip, _ in pairs]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Session:
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

  async def complete(self, request: bytes) -> cache.Completion:
    """The answer to a request, from the cache if it is there."""
    folder, name = (
      pathlib.Path(self.config.cache_dir),
      cache.request_hash(request),
    )
    async with self.locks.setdefault(name, asyncio.Lock()):
      with self._cache_errors():
        kept = cache.load(folder, name)
        found = kept and self._redacted(kept)
        if found and found != kept:
          cache.store(folder, name, found)
      if found is None:
        found = await self.client.complete(request)
        with self._cache_errors():
          cache.store(folder, name, found)
      elif self.config.on_timeout == "reject":
        self.client.answered_before = True
      return found

  def _redacted(self, reply: cache.Completion) -> cache.Completion:
    """A reply without the key; an earlier version may have kept it."""
    text = self.client.redaction.text(reply.text)
    return dataclasses.replace(reply, text=text)

  def redact(
    self, found: clips.Clip | clips.Reject
  ) -> clips.Clip | clips.Reject:
    """What is recorded, without the key: cleaning may have put it together."""
    redact = self.client.redaction.json
    if isinstance(found, clips.Reject):
      clip = self.redact(found.clip)
      return dataclasses.replace(found, clip=clip, detail=redact(found.detail))
    # What other stages found has not been near the endpoint.
    facts = dict(found.facts)
    if NAME in facts:
      facts[NAME] = redact(facts[NAME])
    return dataclasses.replace(found, facts=facts)

  @contextlib.contextmanager
  def _cache_errors(self) -> Iterator[None]:
    """No more is asked once answers cannot be kept: all would be paid twice."""
    try:
      yield
    except OSError as error:
      self.client.unavailable = f"answers cannot be kept: {error}"
      raise stage.Unavailable(self.client.unavailable) from error


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
    desk = _Session(config=config, tokenizer=tokenizer, client=client, locks={})

    async def work() -> None:
      for number in waiting:
        if client.unavailable:
          return
        try:
          outcomes[number] = desk.redact(await _caption(desk, *pairs[number]))
        except (stage.Unavailable, endpoint.AttemptsExhausted) as error:
          failures[number] = error

    async with asyncio.TaskGroup() as tasks:
      for _ in range(min(config.concurrency, len(pairs))):
        tasks.create_task(work())
  if client.unavailable or (failures and config.on_timeout == "wait"):
    raise stage.Unavailable(
      _unavailable_message(config, pairs, len(outcomes), failures)
    )
  for number, error in failures.items():
    outcomes[number] = _failed_reject(pairs[number][0], "no answer", error)
  return [outcomes[number] for number in range(len(pairs))]


def _unavailable_message(
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
    f" {config.cache_dir}; not clip {pairs[number][0].id}{others}:"
    f" {failures[number]}. Run again when the endpoint is well; nothing is"
    " asked twice. If it fails on the same clips for ever, set on_timeout to"
    " 'reject'"
  )


async def _caption(
  desk: _Session, clip: clips.Clip, media: stage.Media
) -> clips.Clip | clips.Reject:
  """Ask about one clip, and again if the answer is unfit."""
  try:
    frames, pcm = artifacts.frames(clip, media), artifacts.audio(clip, media)
  except (KeyError, OSError, ValueError) as error:
    return _failed_reject(clip, "media cannot be read", error)
  if not frames and not pcm:
    return clips.Reject(clip=clip, stage=NAME, reason="nothing to caption")
  body = chat.build_request(_request_config(desk.config), frames, pcm)
  paid = {"tokens_in": 0, "tokens_out": 0}
  tries = 0
  while True:
    try:
      reply = await desk.complete(json.dumps(body).encode())
    except endpoint.RequestRejected as error:
      return _failed_reject(clip, "request refused", error)
    paid = {name: paid[name] + getattr(reply, name) for name in paid}
    try:
      found = _parse(desk, reply, bool(frames), bool(pcm))
    except responses.InvalidResponse as error:
      if tries == desk.config.repair_attempts:
        # What it took was paid for all the same; the report counts it.
        return clips.Reject(
          clip=clip.with_facts(NAME, **paid),
          stage=NAME,
          reason=error.reason,
          detail=f"{error}; the answer was: {reply.text[:1000]}",
        )
      tries += 1
      body = chat.build_repair_request(body, reply.text, error)
    else:
      return clip.with_facts(NAME, **found, **paid)


def _failed_reject(
  clip: clips.Clip, reason: str, error: Exception
) -> clips.Reject:
  """A clip of which nothing is known."""
  detail = f"{type(error).__name__}: {error}"
  return clips.Reject(
    clip=clip, stage=NAME, reason=reason, detail=detail, failed=True
  )


def _parse(
  desk: _Session, reply: cache.Completion, has_video: bool, has_audio: bool
) -> dict[str, Any]:
  """The facts that an answer gives; `answers.Unfit` if it gives none.

  Of an answer that was cut, nothing is used, however whole it looks.
  """
  config = desk.config
  if reply.finish_reason == "length":
    raise responses.InvalidResponse(
      "answer was cut",
      f"it was cut after {config.max_tokens} tokens; it must be shorter",
    )
  wanted = responses.Requirements(
    has_video=has_video,
    has_audio=has_audio,
    visual_chars=config.visual_chars,
    audio_chars=config.audio_chars,
  )
  caption = responses.parse(reply.text, wanted)
  variants = map(geometry.variant, config.variants)
  prompts = list(
    dict.fromkeys(responses.to_prompt(caption, v) for v in variants)
  )
  if desk.tokenizer:
    for note in desk.tokenizer.notes(prompts, config.max_text_len):
      raise responses.InvalidResponse(
        "prompt is too long", f"{note}; it must be shorter"
      )
  return {
    "prompts": prompts,
    "visual": caption.visual,
    "audio": caption.audio,
    "speech": list(caption.speech),
    "attributes": caption.attributes,
  }
