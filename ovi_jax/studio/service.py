"""The HTTP API: OpenAI's video API, with the fields of this project.

  POST   /v1/videos                  make a clip; JSON, or multipart with files
  GET    /v1/videos                  all, newest first
  GET    /v1/videos/ID               status and progress
  GET    /v1/videos/ID/content       the mp4; ?variant= for other files
  POST   /v1/videos/ID/cancel        end it before it is made
  DELETE /v1/videos/ID               forget it and its files
  GET    /v1/models                  the one model
  GET    /openapi.json               this API as an OpenAPI document

Errors are JSON in the form of OpenAI's, one line without paths or tracebacks.
See `guard` for what is refused before a request is read.
"""

import hashlib
import hmac
import io
import logging
import re
from collections.abc import AsyncGenerator
from collections.abc import AsyncIterator
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Annotated
from typing import Any
from typing import Literal

import fastapi
from fastapi import concurrency
from fastapi import exceptions as fastapi_exceptions
from fastapi import responses
from fastapi.openapi import utils as openapi_utils
from PIL import Image
from starlette import datastructures
from starlette import exceptions
from starlette import formparsers
from starlette import requests

import ovi_jax
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.media import decode
from ovi_jax.media import mp4
from ovi_jax.media import wav
from ovi_jax.sampling import outputs
from ovi_jax.studio import engine as engines
from ovi_jax.studio import guard
from ovi_jax.studio import jobs
from ovi_jax.studio import requests as requests_lib
from ovi_jax.studio import schema

_log = logging.getLogger(__name__)
MAX_JSON = 16 << 20  # bytes of a JSON request, files within it included
_MAX_FIELDS = 64
_MAX_FIELD = 256 << 10  # bytes of a field of multipart that is no file
_MORE = 1 << 20  # bytes of a request besides its files
_BRACKETS = re.compile(r"(\w+)\[(\w+)\]", re.ASCII)
_REFUSED = {
  status: {"model": schema.ErrorBody, "description": text}
  for status, text in {
    400: "The request is malformed.",
    401: "The key is missing or wrong.",
    403: "Another host or origin.",
    404: "There is no such clip or file.",
    409: "The clip is not in a state for this.",
    413: "The request is too large.",
    415: "Neither JSON nor multipart.",
    429: "Too many clips are queued.",
    503: "The server cannot store it.",
  }.items()
}
_FILES = {
  **{
    kind: {"schema": {"type": "string", "format": "binary"}}
    for kind in outputs.MEDIA_TYPES.values()
  },
  "application/json": {"schema": {"type": "object"}},
}
Id = Annotated[str, fastapi.Path(max_length=100)]


class _RequestError(Exception):
  """A request that is refused."""

  def __init__(self, status: int, message: str, **more: Any):
    super().__init__(message)
    self.status, self.message, self.more = status, message, more


def create_app(
  engine: engines.Engine,
  *,
  api_key: str = "",
  allowed_hosts: Collection[str] = (),
) -> fastapi.FastAPI:
  """The application; whoever serves it starts and closes the engine.

  Args:
    engine: makes the clips.
    api_key: that `/v1` needs (`Authorization: Bearer KEY`); empty for none.
    allowed_hosts: names of this server besides `localhost` and addresses.
  """
  app = fastapi.FastAPI(
    title="ovi_jax video API",
    version=ovi_jax.__version__,
    description="Makes clips with sound from prompts and given media.",
    docs_url=None,  # its page loads scripts of other hosts
    redoc_url=None,
    responses={k: _REFUSED[k] for k in (401, 403)},
  )
  limit = len(schema.FILES) * engine.limits.file_bytes + _MORE
  app.add_middleware(guard.Guard, hosts=allowed_hosts, max_body=limit)
  router = fastapi.APIRouter(
    prefix="/v1", dependencies=[fastapi.Depends(_authenticator(api_key))]
  )
  _add_videos(router, engine)
  _add_models(router)
  app.include_router(router)
  _add_errors(app)
  app.openapi = lambda: _document(app, bool(api_key))  # type: ignore
  return app


def _authenticator(key: str) -> Callable[[fastapi.Request], None]:
  """A dependency that refuses requests without the key."""
  wanted = hashlib.sha256(key.encode()).digest()

  def check(request: fastapi.Request) -> None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    # Digests, so that the time does not tell the length either.
    found = hashlib.sha256(token.encode("latin-1", "replace")).digest()
    same = hmac.compare_digest(found, wanted)
    if key and not (same and scheme.lower() == "bearer"):
      raise _RequestError(
        401,
        "expected the server's key: Authorization: Bearer KEY",
        code="invalid_api_key",
      )

  return check


def _add_videos(router: fastapi.APIRouter, engine: engines.Engine) -> None:
  """Routes of clips."""

  @router.post(
    "/videos",
    response_model=schema.Video,
    responses={k: _REFUSED[k] for k in (400, 413, 415, 429, 503)},
    openapi_extra={"requestBody": {"$ref": "#/components/requestBodies/Video"}},
  )
  async def create_video(request: fastapi.Request) -> schema.Video:
    """Queue a clip."""
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip()
    kind = kind.lower()
    if kind == "application/json":
      asked = schema.parse(await _json(request))
      given = asked.given()
      return await concurrency.run_in_threadpool(_submit, engine, asked, given)
    if kind != "multipart/form-data":
      raise _RequestError(
        415, "expected application/json or multipart/form-data"
      )
    form = await _Form(request).parse()
    try:
      asked, given = _from_form(form)
      return await concurrency.run_in_threadpool(_submit, engine, asked, given)
    finally:
      await form.close()

  @router.get(
    "/videos",
    response_model=schema.VideoList,
    responses={k: _REFUSED[k] for k in (400, 404)},
  )
  def list_videos(
    limit: Annotated[int, fastapi.Query(ge=1, le=jobs.MAX_LISTED)] = 20,
    after: Annotated[str | None, fastapi.Query(max_length=100)] = None,
    order: Literal["asc", "desc"] = "desc",
  ) -> schema.VideoList:
    """List clips, page by page."""
    found = engine.query(limit=limit, after=after, newest_first=order == "desc")
    more = bool(found) and bool(
      engine.query(limit=1, after=found[-1].id, newest_first=order == "desc")
    )
    return schema.VideoList(
      data=[schema.video(job) for job in found],
      first_id=found[0].id if found else None,
      last_id=found[-1].id if found else None,
      has_more=more,
    )

  @router.get(
    "/videos/{id}",
    response_model=schema.Video,
    responses={404: _REFUSED[404]},
  )
  def retrieve_video(id: Id) -> schema.Video:
    """Status and progress of a clip."""
    return schema.video(engine.get(id))

  @router.post(
    "/videos/{id}/cancel",
    response_model=schema.Video,
    responses={404: _REFUSED[404]},
  )
  def cancel_video(id: Id) -> schema.Video:
    """End a clip that is queued or being made."""
    return schema.video(engine.cancel(id))

  @router.delete(
    "/videos/{id}",
    response_model=schema.Deleted,
    responses={404: _REFUSED[404]},
  )
  def delete_video(id: Id) -> schema.Deleted:
    """Cancel a clip if it is being made, and delete its files."""
    engine.delete(id)
    return schema.Deleted(id=id)

  @router.get(
    "/videos/{id}/content",
    response_class=responses.Response,
    responses={
      200: {"content": _FILES, "description": "The file."},
      404: _REFUSED[404],
      409: _REFUSED[409],
    },
  )
  def download_content(
    id: Id,
    variant: Literal[
      "video", "thumbnail", "preview", "metadata", "latents"
    ] = "video",
  ) -> responses.Response:
    """A file of a clip.

    `preview` is what the clip looks and sounds like while it is made.
    """
    if variant == "preview":
      return _preview(engine, id)
    return _content(engine, engine.get(id), variant)


def _add_models(router: fastapi.APIRouter) -> None:
  @router.get("/models", response_model=schema.ModelList)
  def list_models() -> schema.ModelList:
    """The model that is served."""
    return schema.ModelList(data=[schema.Model()])


class _Form(formparsers.MultiPartParser):
  """Reads a form; one whose last part has no end is an error."""

  def __init__(self, request: fastapi.Request):
    super().__init__(
      request.headers,
      self._whole(request.stream()),
      max_files=len(schema.FILES),
      max_fields=_MAX_FIELDS,
      max_part_size=_MAX_FIELD,
    )
    self._has_ended = False

  def on_end(self) -> None:
    self._has_ended = True

  async def _whole(
    self, chunks: AsyncIterator[bytes]
  ) -> AsyncGenerator[bytes, None]:
    async for chunk in chunks:
      yield chunk
    if not self._has_ended:
      raise formparsers.MultiPartException("the form is cut off")


async def _json(request: fastapi.Request) -> Mapping[str, Any]:
  """The JSON object of a request."""
  body = bytearray()
  async for chunk in request.stream():
    body += chunk
    if len(body) > MAX_JSON:
      raise _RequestError(
        413,
        guard.too_large(MAX_JSON) + " in JSON; send files as multipart",
      )
  try:
    values = untrusted.parse_json(bytes(body), max_bytes=MAX_JSON)
  except ValueError as error:
    message = untrusted.printable(str(error))
    raise _RequestError(400, message) from error
  if not isinstance(values, dict):
    raise _RequestError(400, "expected a JSON object")
  return values


def _from_form(
  form: datastructures.FormData,
) -> tuple[schema.CreateVideo, dict[str, Any]]:
  """The fields and files of a multipart request."""
  values: dict[str, Any] = {}
  files: dict[str, Any] = {}
  for name, value in form.multi_items():
    shown = untrusted.printable(name, 60)
    if name in values or name in files:
      raise schema.FieldError(shown, "expected once, found twice")
    if name in schema.FILES:
      if isinstance(value, str):
        raise schema.FieldError(shown, "expected a file")
      files[name] = value.file
    elif not isinstance(value, str):
      raise schema.FieldError(shown, "expected a text, found a file")
    elif pair := _BRACKETS.fullmatch(name):  # guidance_scale[video]
      inner = values.setdefault(pair[1], {})
      if not isinstance(inner, dict) or pair[2] in inner:
        raise schema.FieldError(pair[1], "expected once, found twice")
      inner[pair[2]] = value
    else:
      values[name] = value
  asked = schema.parse(values)
  return asked, asked.given() | {
    schema.FILES[name]: file for name, file in files.items()
  }


def _submit(
  engine: engines.Engine, asked: schema.CreateVideo, given: Mapping[str, Any]
) -> schema.Video:
  """Queue a checked request."""
  if asked.model not in (None, schema.MODEL):
    raise _RequestError(
      400,
      f"model: expected {schema.MODEL!r} or none",
      param="model",
      code="model_not_found",
    )
  lora = None
  if asked.lora is not None:
    try:
      lora = engine.adapters.resolve(asked.lora)
    except ValueError as error:
      raise schema.FieldError("lora", str(error)) from error
  job = engine.submit(
    asked.prompt,
    asked.settings(),
    given,
    seconds=asked.length(),
    generate=asked.generate,
    lora=lora,
  )
  return schema.video(job)


def _content(
  engine: engines.Engine, job: jobs.Job, variant: str
) -> responses.Response:
  """A file of a finished clip."""
  if job.clip is None:
    raise _RequestError(
      409, f"the clip is {job.status}; its content is there once it is finished"
    )
  clip = engine.store.folder / job.clip
  path, kind = {
    "video": (clip, outputs.MEDIA_TYPES[clip.suffix]),
    "thumbnail": (clip, "image/webp"),
    "metadata": (clip.with_suffix(".json"), "application/json"),
    "latents": (outputs.latents_of(clip), "application/octet-stream"),
  }[variant]
  if not path.is_file():
    raise _RequestError(404, "there is no such file of this clip")
  if variant == "thumbnail":
    if clip.suffix == ".wav":
      raise _RequestError(404, "the clip is sound alone")
    return responses.Response(_thumbnail(clip), media_type=kind)
  if variant == "metadata":
    # Written by `sample.py` it may have paths of this machine.
    recipe = outputs.without_paths(storage.read_json(path))
    return responses.JSONResponse(recipe)
  return responses.FileResponse(path, media_type=kind, filename=path.name)


def _thumbnail(clip: Any) -> bytes:
  """The first frame as WebP."""
  frames: Iterator[Any] = decode.frames(clip, 0.0, 1, lambda *size: size)
  buffer = io.BytesIO()
  Image.fromarray(next(frames)).save(buffer, "WEBP")
  return buffer.getvalue()


def _preview(engine: engines.Engine, id: str) -> responses.Response:
  """The latest preview of a running job."""
  preview = engine.preview(id)
  if preview is None:
    raise _RequestError(409, "there is no preview yet; ask again")
  if preview.frames is None:
    wave_A: Any = preview.audio
    data = wav.encode(wave_A, preview.sample_rate)
  else:
    with storage.spool() as folder:
      path = folder / "preview.mp4"
      mp4.write(
        path,
        [preview.frames],
        preview.audio,
        preview.fps,
        preview.sample_rate,
        threads=1,
        preset=mp4.FAST,
      )
      data = path.read_bytes()
  suffix = ".wav" if preview.frames is None else ".mp4"
  return responses.Response(
    data,
    media_type=outputs.MEDIA_TYPES[suffix],
    headers={"Cache-Control": "no-store", "X-Step": str(preview.step)},
  )


def _add_errors(app: fastapi.FastAPI) -> None:
  """Errors as JSON."""

  def answer(status: int, message: str, **more: Any) -> responses.JSONResponse:
    return responses.JSONResponse(
      guard.error_body(status, message, **more), status
    )

  def add(kind: type[Exception], make: Callable[[Any], Any]) -> None:
    async def handle(_: fastapi.Request, error: Any) -> responses.JSONResponse:
      return make(error)

    app.add_exception_handler(kind, handle)

  add(_RequestError, lambda e: answer(e.status, e.message, **e.more))
  add(schema.FieldError, lambda e: answer(400, str(e), param=e.field or None))
  add(engines.QueueFullError, lambda e: answer(429, str(e), code="queue_full"))
  add(requests_lib.RequestError, lambda e: answer(400, str(e)))
  add(
    jobs.UnknownJobError,
    lambda e: answer(404, "there is no clip of this id", code="not_found"),
  )
  add(jobs.StorageError, lambda e: _not_stored(e, answer))
  add(
    exceptions.HTTPException,
    lambda e: answer(e.status_code, untrusted.printable(str(e.detail))),
  )
  add(
    formparsers.MultiPartException,
    lambda e: answer(400, untrusted.printable(e.message)),
  )
  add(requests.ClientDisconnect, lambda _: answer(400, "the body is cut off"))
  add(
    fastapi_exceptions.RequestValidationError,
    lambda e: _invalid(e, answer),
  )
  # Its traceback goes to the log.
  add(Exception, lambda e: answer(500, "internal error; see the server's log"))


def _not_stored(error: Exception, answer: Callable[..., Any]) -> Any:
  _log.error("not stored: %s", error)
  return answer(503, "the server cannot store this now; try again later")


def _invalid(
  error: fastapi_exceptions.RequestValidationError, answer: Callable[..., Any]
) -> Any:
  """A parameter of the address that is wrong."""
  first = error.errors()[0]
  name = untrusted.printable(str(first["loc"][-1]), 60)
  return answer(400, f"{name}: {first['msg']}", param=name)


def _document(app: fastapi.FastAPI, has_key: bool) -> dict[str, Any]:
  """The OpenAPI document."""
  if app.openapi_schema:
    return app.openapi_schema
  found = openapi_utils.get_openapi(
    title=app.title,
    version=app.version,
    description=app.description,
    routes=app.routes,
  )
  parts = found.setdefault("components", {})
  request = schema.CreateVideo.model_json_schema(
    ref_template="#/components/schemas/{model}"
  )
  parts["schemas"] |= request.pop("$defs", {})
  parts["schemas"]["CreateVideo"] = request
  form = {**request, "properties": dict(request["properties"])}
  for name in schema.FILES:
    form["properties"][name] = {
      "type": "string",
      "format": "binary",
      "description": request["properties"][name].get("description", ""),
    }
  parts["requestBodies"] = {
    "Video": {
      "required": True,
      "content": {
        "application/json": {
          "schema": {"$ref": "#/components/schemas/CreateVideo"}
        },
        "multipart/form-data": {"schema": form},
      },
    }
  }
  for operations in found["paths"].values():
    for operation in operations.values():
      operation["responses"].pop("422", None)  # it is 400 here
  for name in ("HTTPValidationError", "ValidationError"):
    parts["schemas"].pop(name, None)
  if has_key:
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    found["security"] = [{"key": []}]
  app.openapi_schema = found
  return found
