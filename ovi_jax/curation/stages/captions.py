"""Captions clips with a multimodal model, or from a table.

With `captions_file`, a clip gets the captions of its file in the table
(`ovi_jax/data/captions.py`) and no endpoint is called. Otherwise the frames
stored by `encode` and the audio are sent in one request to an OpenAI-compatible
endpoint; the validated caption becomes prompts in the released tag formats, or
the clip is rejected. Responses are cached by request, so none is paid for
twice; while the endpoint is unavailable, the shard stays pending.
(Ovi, arXiv 2510.01284: seven evenly spaced frames and the audio.)
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
from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.curation.captioning import cache
from ovi_jax.curation.captioning import chat
from ovi_jax.curation.captioning import responses
from ovi_jax.curation.media import artifacts
from ovi_jax.data import captions as captions_lib
from ovi_jax.endpoints import client as endpoint
from ovi_jax.endpoints import credentials
from ovi_jax.media import container as containers

VERSION = 1
KIND = "batch"
NAME = "captions"
ON_TIMEOUT = ("wait", "reject")
_MEDIA_KINDS = (((b"",), b"-"), ((b"",), b""), ((), b"-"))  # with frames, sound
Pair = tuple[clips.Clip, stage.Media]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(endpoint.Settings):
  """Request and validation; extends `endpoint.Settings`.

  Attributes:
    captions_file: table of captions (CSV or TSV with the columns path and
      caption); "" to use the endpoint.
    variants: released variants whose prompts are written, without duplicates.
    instruction: replaces the default instruction; "" for the default.
    temperature: sampling temperature.
    max_tokens: maximum tokens per response.
    structured_output: send the JSON schema as `response_format`; the endpoint
      must support it.
    extra_body: JSON values merged into each request, such as
      {"modalities": ["text"]}.
    repair_attempts: repair requests after an invalid response.
    visual_chars: minimum and maximum characters of the visual part.
    audio_chars: minimum and maximum characters of the audio description.
    tokenizer: a `tokenizer.json`, to reject prompts that training would
      truncate; "" for no check.
    max_text_len: maximum tokens of a prompt.
    on_timeout: clips whose attempts are exhausted while others are answered:
      "wait" leaves the shard pending, "reject" rejects them.
    cache_dir: directory of responses, local or mounted.
    usd_per_mtok_in: price of a million input tokens, for the report.
    usd_per_mtok_out: price of a million output tokens, for the report.
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
          f"{name}: expected minimum and maximum characters, got {bounds}"
        )
    if min(self.max_tokens, self.max_text_len) < 1 or self.repair_attempts < 0:
      raise ValueError(
        "expected max_tokens and max_text_len of at least 1 and"
        f" repair_attempts of at least 0, got {self.max_tokens},"
        f" {self.max_text_len}, {self.repair_attempts}"
      )
    _request_config(self)
    if not self.cache_dir:
      raise ValueError("cache_dir: expected a folder for tokens responses")
    if "://" in self.cache_dir:
      raise ValueError(
        "cache_dir: expected a folder of this machine, or one that is mounted"
        f" there, got the URL {self.cache_dir!r}"
      )


def fingerprint(config: Config) -> dict[str, Any]:
  """The settings that affect captions, without endpoint and rate limits."""
  if config.captions_file:
    return _file_fingerprint(config)
  excluded = {field.name for field in dataclasses.fields(endpoint.Settings)}
  excluded |= {
    "cache_dir",
    "usd_per_mtok_in",
    "usd_per_mtok_out",
    "tokenizer",
    "captions_file",
  }
  values = dataclasses.asdict(config)
  result = {
    name: value for name, value in values.items() if name not in excluded
  }
  requests = [
    chat.build_request(_request_config(config), *given)
    for given in _MEDIA_KINDS
  ]
  return {
    **result,
    "requests": requests,
    "tokenizer": _tokenizer_digest(config),
  }


def _file_fingerprint(config: Config) -> dict[str, Any]:
  """The settings that affect captions from a table, with its content."""
  table = containers.given("captions.captions_file", config.captions_file)
  return {
    "source": containers.digest(table),
    "variants": config.variants,
    "tokenizer": _tokenizer_digest(config),
    "max_text_len": config.max_text_len,
  }


def _tokenizer_digest(config: Config) -> str:
  """Hash of the tokenizer file; "" without one."""
  if not config.tokenizer:
    return ""
  return containers.digest(
    containers.given("captions.tokenizer", config.tokenizer)
  )


def missing_requirements(config: Config) -> list[str]:
  """The table, or the model, API key and client, if missing."""
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
      "captions.model: expected the model name at the endpoint; give"
      " --config.stages.captions.url=http://HOST:8000/v1"
      f" --config.stages.captions.model=MODEL, {table}"
    )
  for check in (
    endpoint.check_setup,
    functools.partial(credentials.read, config.api_key_env),
  ):
    try:
      check()
    except ValueError as error:
      problems.append(f"captions: {error}, {table}")
  return problems


def _request_config(config: Config) -> chat.RequestConfig:
  """The parameters shared by all requests."""
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
  """The stage function.

  Args:
    config: config of the stage.
    clock: clock for waits; replaced by tests.

  Raises:
    ValueError: no model, no API key in the environment, an invalid tokenizer,
      a cache directory that cannot be created, or httpx cannot be used.
  """
  if config.captions_file:
    return _from_file(config)
  if not config.model:
    raise ValueError("captions.model: expected the model name at the endpoint")
  endpoint.check_setup()
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
    tokenizer_lib.Tokenizer.load(config.tokenizer)
    if config.tokenizer
    else None,
    clock or endpoint.Clock(),
  )
  return lambda pairs: asyncio.run(ask(pairs))


def _from_file(
  config: Config,
) -> Callable[[Sequence[Pair]], list[clips.Clip | clips.Reject]]:
  """The stage function for captions from a table."""
  table = captions_lib.Table.load(config.captions_file)
  tokenizer = (
    tokenizer_lib.Tokenizer.load(config.tokenizer) if config.tokenizer else None
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
  """State shared by all requests of a batch.

  Attributes:
    config: config of the stage.
    tokenizer: measures prompts, or None.
    client: endpoint client.
    locks: request hash -> lock; identical requests are sent once.
  """

  config: Config
  tokenizer: tokenizer_lib.Tokenizer | None
  client: endpoint.Client[cache.Completion]
  locks: dict[str, asyncio.Lock]

  async def complete(self, request: bytes) -> cache.Completion:
    """The response to a request, from the cache if present."""
    folder, name = (
      pathlib.Path(self.config.cache_dir),
      endpoint.request_hash(request),
    )
    async with self.locks.setdefault(name, asyncio.Lock()):
      with self._cache_errors():
        kept = cache.load(folder, name)
        found = kept and self._redacted(kept)
        if found and found != kept:
          cache.store(folder, name, found)
      if found is None:
        found = await self.client.send(request)
        with self._cache_errors():
          cache.store(folder, name, found)
      elif self.config.on_timeout == "reject":
        self.client.answered_before = True
      return found

  def _redacted(self, completion: cache.Completion) -> cache.Completion:
    """A response without the API key; an old cache may contain it."""
    text = self.client.redaction.text(completion.text)
    return dataclasses.replace(completion, text=text)

  def redact(
    self, found: clips.Clip | clips.Reject
  ) -> clips.Clip | clips.Reject:
    """A result without the API key, which text cleaning could reassemble."""
    redact = self.client.redaction.json
    if isinstance(found, clips.Reject):
      clip = self.redact(found.clip)
      return dataclasses.replace(found, clip=clip, detail=redact(found.detail))
    # Facts of other stages do not come from the endpoint.
    facts = dict(found.facts)
    if NAME in facts:
      facts[NAME] = redact(facts[NAME])
    return dataclasses.replace(found, facts=facts)

  @contextlib.contextmanager
  def _cache_errors(self) -> Iterator[None]:
    """Stop requests if the cache is not writable: they would be paid twice."""
    try:
      yield
    except OSError as error:
      self.client.unavailable = f"responses cannot be cached: {error}"
      raise stage.Unavailable(self.client.unavailable) from error


async def _caption_all(
  config: Config,
  key: str,
  tokenizer: tokenizer_lib.Tokenizer | None,
  clock: endpoint.Clock,
  pairs: Sequence[Pair],
) -> list[clips.Clip | clips.Reject]:
  """The result of every clip, in order; requests run concurrently."""
  outcomes: dict[int, clips.Clip | clips.Reject] = {}
  waiting = iter(range(len(pairs)))
  failures: dict[int, OSError] = {}
  async with endpoint.Client(config, key, clock, chat.ROUTE) as client:
    session = _Session(
      config=config, tokenizer=tokenizer, client=client, locks={}
    )

    async def work() -> None:
      for number in waiting:
        if client.unavailable:
          return
        try:
          outcomes[number] = session.redact(
            await _caption(session, *pairs[number])
          )
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
    outcomes[number] = _failed_reject(pairs[number][0], "no response", error)
  return [outcomes[number] for number in range(len(pairs))]


def _unavailable_message(
  config: Config,
  pairs: Sequence[Pair],
  done: int,
  failures: Mapping[int, OSError],
) -> str:
  """The error message of a pending shard."""
  number = min(failures)
  others = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
  return (
    f"{done} of {len(pairs)} clips have a response, cached in"
    f" {config.cache_dir}; no response for clip {pairs[number][0].id}{others}:"
    f" {failures[number]}. Run again when the endpoint is available;"
    " cached responses are reused. If it always fails on the same clips, set"
    " on_timeout to 'reject'"
  )


async def _caption(
  session: _Session, clip: clips.Clip, media: stage.Media
) -> clips.Clip | clips.Reject:
  """Request the caption of a clip, with repair requests if invalid."""
  try:
    frames, pcm = artifacts.frames(clip, media), artifacts.audio(clip, media)
  except (KeyError, OSError, ValueError) as error:
    return _failed_reject(clip, "media cannot be read", error)
  if not frames and not pcm:
    return clips.Reject(clip=clip, stage=NAME, reason="nothing to caption")
  body = chat.build_request(_request_config(session.config), frames, pcm)
  tokens = {"tokens_in": 0, "tokens_out": 0}
  attempt = 0
  while True:
    try:
      completion = await session.complete(json.dumps(body).encode())
    except endpoint.RequestRejected as error:
      return _failed_reject(clip, "request rejected", error)
    tokens = {name: tokens[name] + getattr(completion, name) for name in tokens}
    try:
      found = _parse(session, completion, bool(frames), bool(pcm))
    except responses.InvalidResponse as error:
      if attempt == session.config.repair_attempts:
        # The report also counts the tokens of rejected clips.
        return clips.Reject(
          clip=clip.with_facts(NAME, **tokens),
          stage=NAME,
          reason=error.reason,
          detail=f"{error}; the response was: {completion.text[:1000]}",
        )
      attempt += 1
      body = chat.build_repair_request(body, completion.text, error)
    else:
      return clip.with_facts(NAME, **found, **tokens)


def _failed_reject(
  clip: clips.Clip, reason: str, error: Exception
) -> clips.Reject:
  """The reject of a clip that could not be captioned."""
  detail = f"{type(error).__name__}: {error}"
  return clips.Reject(
    clip=clip, stage=NAME, reason=reason, detail=detail, failed=True
  )


def _parse(
  session: _Session,
  completion: cache.Completion,
  has_video: bool,
  has_audio: bool,
) -> dict[str, Any]:
  """The facts of a response; raises `responses.InvalidResponse`.

  Truncated responses are not used, even if they parse.
  """
  config = session.config
  if completion.finish_reason == "length":
    raise responses.InvalidResponse(
      "response truncated",
      f"it was truncated after {config.max_tokens} tokens; it must be shorter",
    )
  requirements = responses.Requirements(
    has_video=has_video,
    has_audio=has_audio,
    visual_chars=config.visual_chars,
    audio_chars=config.audio_chars,
  )
  caption = responses.parse(completion.text, requirements)
  variants = map(geometry.variant, config.variants)
  prompts = list(
    dict.fromkeys(responses.to_prompt(caption, v) for v in variants)
  )
  if session.tokenizer:
    for note in session.tokenizer.notes(prompts, config.max_text_len):
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
