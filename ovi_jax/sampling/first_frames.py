"""First frames from a text-to-image model behind an OpenAI-compatible endpoint.

The picture's prompt is the clip's without speech and sound. Pictures are kept
in a folder by prompt, seed, size and model, so that none is paid for twice: if
the endpoint fails, those that have arrived stay, and the next run asks for the
others. A picture is decoded before it is kept; what it says of itself is not
trusted (`media.images`).
"""

import asyncio
import base64
import binascii
import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Coroutine
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
from typing import Any
from typing import TypeVar

from ovi_jax import files
from ovi_jax import geometry
from ovi_jax import prompt as prompts
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.endpoints import client as clients
from ovi_jax.endpoints import credentials
from ovi_jax.media import images
from ovi_jax.sampling import requests as requests_lib
from ovi_jax.sampling import windows

_log = logging.getLogger(__name__)
T = TypeVar("T")
FOLDER = "first_frames"
_MAX_BYTES = 64 << 20  # of a response: a picture of 48 MB as base64
# Fields that not every endpoint knows; left out if it names them in an error.
_OPTIONAL = ("response_format", "size", "seed")
_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"RIFF": ".webp"}
_HASH_LENGTH = 24  # hexadecimal digits of a name
_CONCURRENCY = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
  """Where first frames come from.

  Attributes:
    url: base URL with the version, such as "http://127.0.0.1:8000/v1".
    model: name of the model there; empty to send none.
    api_key_env: environment variable with the API key; empty for none.

  Raises:
    ValueError: the URL, or the name of the variable, cannot be.
  """

  url: str
  model: str = ""
  api_key_env: str = ""

  def __post_init__(self):
    try:
      self.client_settings()
      credentials.check_settings({"url": self.url, "model": self.model})
    except ValueError as error:
      raise ValueError(f"first_frame_endpoint: {error}") from error

  def client_settings(self) -> clients.Settings:
    """Settings of the client: fewer attempts than a batch job makes."""
    return clients.Settings(
      url=self.url.rstrip("/").removesuffix(f"/{ROUTE.path}"),
      model=self.model,
      api_key_env=self.api_key_env,
      concurrency=_CONCURRENCY,
      max_attempts=4,
      backoff_max=20.0,
    )


def from_values(url: str, model: str, api_key_env: str) -> Endpoint | None:
  """The endpoint of flags or keywords; `None` without a URL.

  Raises:
    ValueError: a model or key without a URL, or as `Endpoint`.
  """
  for name, value in (
    ("first_frame_endpoint", url),
    ("first_frame_model", model),
    ("first_frame_key_env", api_key_env),
  ):
    if value is not None and not isinstance(value, str):
      raise ValueError(f"{name} must be text, got {type(value).__name__}")
  if url:
    return Endpoint(url=url, model=model, api_key_env=api_key_env)
  if model or api_key_env:
    name = "first_frame_model" if model else "first_frame_key_env"
    raise ValueError(f"{name} needs first_frame_endpoint; add the URL")
  return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Wanted:
  """A picture that is asked for.

  Attributes:
    prompt: of it.
    seed: of it.
    size: rows and columns.
    model: that makes it.
  """

  prompt: str
  seed: int
  size: tuple[int, int]
  model: str

  @property
  def stem(self) -> str:
    """Name of its file without an ending."""
    content = json.dumps(dataclasses.astuple(self)).encode()
    return hashlib.sha256(content).hexdigest()[:_HASH_LENGTH]

  def body(self, dropped: Sequence[str]) -> bytes:
    """The request, without the fields that the endpoint does not know."""
    rows, columns = self.size
    fields = {
      "model": self.model,
      "prompt": self.prompt,
      "n": 1,
      "size": f"{columns}x{rows}",
      "seed": self.seed,
      "response_format": "b64_json",
    }
    kept = {k: v for k, v in fields.items() if k not in dropped and v != ""}
    return json.dumps(kept).encode()


def _picture(found: Any, redaction: credentials.Redaction) -> bytes:
  """The content of the first picture of a response."""
  del redaction  # the picture is no text
  try:
    return base64.b64decode(found["data"][0]["b64_json"], validate=True)
  except binascii.Error as error:
    raise ValueError("no base64") from error


ROUTE = clients.Route(
  path="images/generations",
  expected="a picture as b64_json",
  max_bytes=_MAX_BYTES,
  parse=_picture,
)


def check(
  requests: Iterable[requests_lib.Request], mode: str, generate: str
) -> None:
  """Check that first frames are of use.

  Args:
    requests: of the run.
    mode: of `requests.MODES`.
    generate: a key of `denoiser.NEEDS`.

  Raises:
    ValueError: they cannot be combined with something else, or a prompt says
      nothing of the picture.
  """
  if mode == "t2v":
    raise ValueError("first_frame_endpoint and mode t2v cannot be combined")
  if generate == "audio":
    raise ValueError(
      "first_frame_endpoint and generate=audio cannot be combined"
    )
  for request in requests:
    if _needs_one(request) and not _prompt_of(request):
      raise ValueError(
        f"{request.place}the prompt has only speech and sound; describe the"
        " picture, or give an image"
      )


def _needs_one(request: requests_lib.Request) -> bool:
  given = request.given
  return request.image is given.video is given.extend is None


def _prompt_of(request: requests_lib.Request) -> str:
  """The prompt of its picture: of several windows, that of the first."""
  text = request.prompt
  if request.seconds is not None:
    text = windows.split_prompt(text)[0]
  return prompts.picture(text)


def fetch(
  requests: Sequence[requests_lib.Request],
  endpoint: Endpoint,
  folder: storage.AnyPath,
  *,
  seed: int,
  samples_per_prompt: int,
  size: tuple[int, int],
  area: int,
  clock: clients.Clock | None = None,
) -> list[requests_lib.Request]:
  """Give a first frame to every request that has none.

  Args:
    requests: of the run.
    endpoint: to ask.
    folder: where pictures are kept.
    seed: of requests without one.
    samples_per_prompt: repetitions of a request, each with its own picture.
    size: rows and columns that are wished for; only the ratio counts.
    area: pixels a frame of the weights.
    clock: for waits; replaced by tests.

  Returns:
    The requests, those with a new picture once for each repetition, with its
    seed; the others as they were, repeated likewise.

  Raises:
    ValueError: no API key, httpx cannot be used, or pictures are missing: the
      endpoint is gone, or rejects a prompt. What has arrived is kept.
    OSError: the folder cannot be written.
  """
  clients.check_setup()
  key = credentials.read(endpoint.api_key_env)
  rows = geometry.snap(*size, area)
  expanded: list[requests_lib.Request] = []
  wanted: dict[int, _Wanted] = {}  # by place
  for request in requests:
    first = seed if request.seed is None else request.seed
    for repetition in range(samples_per_prompt):
      number = (first + repetition) % requests_lib.SEEDS
      if _needs_one(request):
        wanted[len(expanded)] = _Wanted(
          prompt=_prompt_of(request),
          seed=number,
          size=rows,
          model=endpoint.model,
        )
      expanded.append(dataclasses.replace(request, seed=number))
  folder.mkdir(parents=True, exist_ok=True)
  missing = [w for w in dict.fromkeys(wanted.values()) if not _find(folder, w)]
  failed: dict[_Wanted, str] = {}
  if missing:
    _log.info("asking %s for %d first frames", endpoint.url, len(missing))
    failed = _run(_ask(endpoint, key, missing, folder, clock))
  if failed:
    place = next(n for n, each in wanted.items() if each in failed)
    raise ValueError(
      f"first_frame_endpoint: {len(failed)} of {len(set(wanted.values()))}"
      f" pictures are missing. {expanded[place].place}{failed[wanted[place]]};"
      f" the others are kept in {folder}, run again"
    )
  for place, each in wanted.items():
    path = _find(folder, each)
    assert path is not None
    expanded[place] = dataclasses.replace(
      expanded[place], image=path, first_frame=_metadata(each)
    )
  return expanded


def _metadata(wanted: _Wanted) -> Mapping[str, Any]:
  """What a picture was made from, for the JSON beside a clip."""
  return {
    "model": wanted.model,
    "prompt": wanted.prompt,
    "seed": wanted.seed,
  }


def _find(folder: storage.AnyPath, wanted: _Wanted) -> storage.AnyPath | None:
  """The kept picture."""
  paths = (folder / f"{wanted.stem}{end}" for end in _ENDINGS.values())
  return next((path for path in paths if path.is_file()), None)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
  """Its result; also where an event loop runs, as in a notebook."""
  try:
    asyncio.get_running_loop()
  except RuntimeError:
    return asyncio.run(coroutine)
  with futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(asyncio.run, coroutine).result()


async def _ask(
  endpoint: Endpoint,
  key: str,
  missing: Sequence[_Wanted],
  folder: storage.AnyPath,
  clock: clients.Clock | None,
) -> dict[_Wanted, str]:
  """Ask for pictures and keep them; why some are missing."""
  failed: dict[_Wanted, str] = {}
  dropped: list[str] = []
  waiting = iter(missing)
  settings = endpoint.client_settings()
  async with clients.Client(
    settings, key, clock or clients.Clock(), ROUTE
  ) as client:

    async def work() -> None:
      for each in waiting:
        try:
          _keep(folder, each, await _send(client, each, dropped))
        except (
          clients.AttemptsExhausted,
          clients.Unavailable,
          ValueError,  # the request is rejected, or the picture is none
        ) as error:
          said = client.redaction.text(str(error))
          failed[each] = untrusted.printable(said, 500)

    try:
      async with asyncio.TaskGroup() as tasks:
        for _ in range(min(_CONCURRENCY, len(missing))):
          tasks.create_task(work())
    except ExceptionGroup as group:
      raise group.exceptions[0] from None  # the folder cannot be written
  return failed


async def _send(
  client: clients.Client[bytes], wanted: _Wanted, dropped: list[str]
) -> bytes:
  """A picture; fields that the endpoint rejects are left out from then on."""
  while True:
    # Another request may drop fields while this one is answered.
    left_out = tuple(dropped)
    try:
      return await client.send(wanted.body(left_out))
    except clients.RequestRejected as error:
      named = [f for f in _OPTIONAL if f in str(error) and f not in left_out]
      if not named:
        raise
      dropped += [f for f in named if f not in dropped]


def _keep(folder: storage.AnyPath, wanted: _Wanted, content: bytes) -> None:
  """Write a picture that can be read."""
  images.read_image(io.BytesIO(content))
  ending = next(e for m, e in _ENDINGS.items() if content.startswith(m))
  with files.atomic_path(folder / f"{wanted.stem}{ending}") as temporary:
    temporary.write_bytes(content)
