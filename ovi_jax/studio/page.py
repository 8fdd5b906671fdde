"""The page of the studio: a Gradio page on the service's application.

The page is one HTML component. Its markup, style and script are in `assets/`;
the script calls `Functions` through Gradio, and makes clips through the API of
the service. Texts reach the page as JSON and are put in as text. Gradio's fonts
and scripts from other hosts are removed, and the Content-Security-Policy allows
requests to this server only.
"""

import base64
import binascii
import contextlib
import functools
import hashlib
import hmac
import logging
import math
import pathlib
import re
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from importlib import resources
from typing import Any
from urllib import parse

import fastapi
import gradio
from fastapi import responses
from gradio import themes
from starlette import types

from ovi_jax import files
from ovi_jax import geometry
from ovi_jax import prompt as prompts
from ovi_jax import synthetic
from ovi_jax.modality import AV
from ovi_jax.sampling import attention_maps
from ovi_jax.sampling import opening
from ovi_jax.sampling import outputs
from ovi_jax.sampling import planning
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.studio import engine as engines
from ovi_jax.studio import events
from ovi_jax.studio import gallery as galleries
from ovi_jax.studio import jobs
from ovi_jax.studio import maps
from ovi_jax.studio import repeats
from ovi_jax.synthetic.world import scene

_log = logging.getLogger(__name__)

PATH, CLIPS, EXAMPLES, MAPS = "/studio", "/clips", "/examples", "/maps"
VIDEOS = "/v1/videos"
MAX_SHOWN = 48  # clips of the gallery in one answer
MAX_JOBS = 50  # that have not ended, in one answer
# Part of the recommended denoising steps.
PRESETS = {"Quality": 1.0, "Balanced": 0.6, "Fast": 0.3}
SMALL_VOCABULARY = 1000  # tokens; that of released weights has 256,384
# Words of the synthetic world, for weights that know them.
WORDS: Mapping[str, Sequence[str]] = {
  "Colours": tuple(scene.COLOURS),
  "Things": ("ball", "lamp", "face", "hat"),
  "Sizes": scene.SIZES,
  "Actions": ("bounces", "flashes", "says", "lies still", "keeps quiet"),
  "Floors": ("wooden floor", "metal floor", "rubber floor"),
  "Counts": ("two times", "three times", "four times", "five times"),
  "Speech": scene.VOWELS,
  "Sounds": (
    *("dull wooden knocks", "ringing metal clangs", "soft rubber thuds"),
    *("low beeps", "middle beeps", "high beeps"),
    *("a deep voice", "a high voice", "silence"),
  ),
}
_API = ("/v1/", "/openapi.json")
_HEADERS = {
  # Gradio evaluates scripts and styles within its page.
  "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval'"
  " data: blob:; base-uri 'self'; form-action 'self'; object-src 'none';"
  " frame-ancestors 'none'",
}
# Tags of an HTML page that load from another host, or a file that is not there.
_FOREIGN = re.compile(
  r"<link\b[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>"
  r"|<link\b[^>]*\brel=[\"']?manifest\b[^>]*>"
  r"|<script\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>\s*</script>"
  r"|<meta\b[^>]*\bcontent=[\"']?(?:https?:)?//[^>]*>",
  re.IGNORECASE,
)


class Functions:
  """What the page asks the server, and gets as JSON.

  Each takes one argument, which may be anything that JSON can express.
  """

  def __init__(self, engine: engines.Engine, api_key: str = ""):
    """Read the tokenizer.

    Args:
      engine: makes clips.
      api_key: of the service, which the page's requests need.
    """
    self.engine, self.api_key = engine, api_key
    components = engine.pipeline.components
    self._variant = components.manifest.geometry
    self._manifest = components.manifest
    self._defaults = settings_lib.Settings.from_overrides(
      {}, opening.recommended_of(components)
    )
    self._length = components.text_length
    self._tokenizer = components.tokenizer()
    self.gallery = galleries.Gallery(engine.store.folder)
    self._films = maps.Films(engine, self.gallery)
    # By clip: its version and its events.
    self._events: dict[str, tuple[str, AV[list[float]]]] = {}
    self.examples = galleries.Gallery(_assets() / "examples")

  @property
  def public(self) -> tuple[Callable[[Any], Any], ...]:
    """The functions that the page may call."""
    return (
      self.about,
      self.read_prompt,
      self.live,
      self.cancel,
      self.again,
      self.list_clips,
      self.find_events,
      self.draw_attention,
    )

  def about(self, _: Any = None) -> dict[str, Any]:
    """The weights, and what the page offers for them."""
    recommended = settings_lib.recommended_of(self._manifest)
    knows_world = self._knows_world()
    before, after = "", ""
    if self._variant.audio_tag == prompts.SOUND:
      before, after = prompts.SOUND, prompts.SOUND_END
    else:
      before = f"{prompts.SOUND_LINE} "
    return {
      "weights": self._weights_line(),
      "tags": {
        "speech": [prompts.SPEECH, prompts.SPEECH_END],
        "sound": [before, after],
      },
      "words": _word_groups() if knows_world else [],
      "examples": self._examples() if knows_world else [],
      "presets": _presets(recommended["num_steps"]),
      "seconds": round(self._seconds(), 2),
      "max_seconds": self.engine.limits.seconds,
      "towers": list(self._manifest.architecture.fusion.present()),
      "voices": planning.knows_voices(self._manifest),
      "seed": settings_lib.FIXED["seed"],
      "loras": self.engine.adapters.names(),
      "videos": VIDEOS,
      "key": self.api_key,
      "max_bytes": self.engine.limits.file_bytes,
      "max_characters": self.engine.limits.prompt_length,
    }

  def _weights_line(self) -> str:
    """What the weights are, in a few words."""
    name = self._manifest.variant or "custom weights"
    if self.engine.pipeline.components.weights == synthetic.WEIGHTS:
      name = "small Ovi"
    height, width = geometry.snap(
      *opening.clip_size(self._defaults, self._manifest), self._variant.area
    )
    size = f"{width}x{height} pixels by default"
    return f"{name}: {size}, {self._seconds():.1f} s"

  def _seconds(self) -> float:
    """Length of the clips of the weights."""
    latents = self._variant.latent_frames - 1
    return (1 + geometry.VIDEO_STRIDES[0] * latents) / geometry.FPS

  def _knows_world(self) -> bool:
    """Whether the vocabulary is that of the synthetic world."""
    words = " ".join(word for group in WORDS.values() for word in group)
    size = self._tokenizer.model.get_vocab_size()
    return size <= SMALL_VOCABULARY and not self._tokenizer.unread(words)

  def _examples(self) -> list[dict[str, str]]:
    clips = sorted(self.examples.clips(), key=lambda clip: clip.name)
    return [
      {"prompt": clip.prompt, "source": f"{EXAMPLES}/{clip.name}"}
      for clip in clips
    ]

  def read_prompt(self, text: Any) -> dict[str, Any]:
    """How a prompt is read: its parts, as written, and notes."""
    text = _a_text(text, self.engine.limits.prompt_length)
    if problem := prompts.unreadable(text):
      # Half a character of UTF-16 cannot be sent back.
      shown = text.encode("utf-8", "replace").decode()
      return {"segments": [[prompts.TEXT, shown]], "notes": [problem]}
    notes: tuple[str, ...] = ()
    if prompts.clean(text):
      _, notes = planning.read_prompts(
        [text], self._variant, self._tokenizer, self._length
      )
    return {"segments": prompts.segments(text), "notes": notes}

  def live(self, ids: Any = None) -> dict[str, Any]:
    """Jobs that have not ended, and the step of the preview of one.

    Args:
      ids: of jobs of this page that are told of even if they have ended; the
        first one is shown with its preview.
    """
    ids = ids[:MAX_JOBS] if isinstance(ids, list) else []
    ids = [id for id in ids if isinstance(id, str)]
    found = self.engine.query(
      limit=MAX_JOBS,
      newest_first=False,
      statuses=(jobs.RUNNING, jobs.QUEUED),
    )
    running = [job.id for job in found if job.status == jobs.RUNNING]
    for id in dict.fromkeys(ids):
      if all(job.id != id for job in found):
        with contextlib.suppress(jobs.UnknownJobError):  # it may be deleted
          found.append(self.engine.get(id))
    preview = None
    if ids and ids[0] in running:
      preview = self.engine.preview(ids[0])
    return {
      "jobs": [_job(job) for job in found],
      "preview": preview and preview.step,
    }

  def cancel(self, id: Any) -> dict[str, Any]:
    """Cancel a job."""
    return _job(self.engine.cancel(_a_text(id, 200)))

  def again(self, asked: Any) -> dict[str, Any]:
    """Make a clip of the gallery again, with another seed.

    Args:
      asked: `name` of the clip, and `seed`.
    """
    clip = self.gallery.find(_field(asked, "name"))
    request, folder = repeats.request_of(self.engine.store, clip)
    return _job(self.engine.repeat(request, folder, seed=asked.get("seed")))

  def find_events(self, name: Any) -> dict[str, Any]:
    """Seconds at which something happens in the picture and the sound."""
    clip = self.gallery.find(_a_text(name, 1000))
    version, found = self._events.get(clip.name, ("", AV()))
    if version != clip.version:
      with self.engine.planner.public_errors():
        found = events.find(self.engine.store.folder / clip.name)
      if len(self._events) >= MAX_SHOWN:
        self._events.clear()
      self._events[clip.name] = clip.version, found
    return dict(found.present())

  def draw_attention(self, name: Any) -> dict[str, Any]:
    """Where the clip with its attention maps is; draws them first."""
    clip = self.gallery.find(_a_text(name, 1000))
    self._films.film(clip)
    return {"source": f"{MAPS}/{parse.quote(clip.stem)}.mp4?v={clip.version}"}

  def list_clips(self, asked: Any = None) -> dict[str, Any]:
    """Clips of the folder, the newest first.

    Args:
      asked: `query`, words that all have to be found; `start`, how many clips
        to pass over; or `name` of one clip.
    """
    if name := _field(asked, "name"):
      found = [self.gallery.find(name)]
    else:
      found = self.gallery.search(_field(asked, "query"))
    start = asked.get("start", 0) if isinstance(asked, dict) else 0
    start = max(0, start) if type(start) is int else 0
    clips = []
    for clip in found[start : start + MAX_SHOWN]:
      repeatable = repeats.is_repeatable(self.engine.store, clip)
      has_latents = self.gallery.latents(clip) is not None
      clips.append({**_clip(clip, has_latents), "repeatable": repeatable})
    return {"clips": clips, "total": len(found)}


def mount(
  app: fastapi.FastAPI, engine: engines.Engine, api_key: str = ""
) -> None:
  """Put the page at `PATH`, and what it shows beside it.

  Args:
    app: of the service.
    engine: makes clips.
    api_key: of the service; browsers ask for it. Empty for none.
  """
  functions = Functions(engine, api_key)
  if api_key:
    app.add_middleware(_PageKey, key=api_key)
  routes = fastapi.APIRouter(include_in_schema=False)

  @routes.get("/")
  def home() -> responses.Response:
    return responses.RedirectResponse(f"{PATH}/")

  @routes.get("/favicon.ico")
  def icon() -> responses.Response:
    return responses.Response(_read("icon.svg"), media_type="image/svg+xml")

  @routes.get(f"{CLIPS}/{{name}}")
  def clip(name: str) -> responses.Response:
    return _file(functions.gallery, name)

  @routes.get(f"{MAPS}/{{name}}")
  def attention_film(name: str) -> responses.Response:
    return _film(functions.gallery, name)

  @routes.get(f"{EXAMPLES}/{{name}}")
  def example(name: str) -> responses.Response:
    return _file(functions.examples, name)

  app.include_router(routes)
  gradio.mount_gradio_app(
    app,
    blocks(functions),
    path=PATH,
    theme=_theme(),
    max_file_size=1,  # files are given to the service
    show_error=False,
    ssr_mode=False,
    footer_links=[],
    run_history=False,
  )
  mounted: Any = app.routes[-1]
  mounted.app = _LocalPage(mounted.app, _read("studio.css"))


def blocks(functions: Functions) -> gradio.Blocks:
  """The page, which calls these functions."""
  with gradio.Blocks(title="Ovi studio", analytics_enabled=False) as page:
    gradio.HTML(
      html_template=_read("studio.html"),
      js_on_load=_read("studio.js"),
      server_functions=[_answer(each) for each in functions.public],
      apply_default_css=False,
      padding=False,
    )
  return page


def _theme() -> themes.Base:
  """A theme of fonts that the system has."""
  return themes.Base(
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
  )


def _answer(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
  """The function, with what is wrong with a request as its answer."""

  @functools.wraps(function)
  def answer(argument: Any = None) -> Any:
    try:
      return function(argument)
    except ValueError as error:
      return {"error": str(error)}
    except jobs.UnknownJobError:
      return {"error": "there is no such job; it may have been removed"}
    except jobs.StorageError as error:
      _log.error("not read or stored: %s", error)
      return {
        "error": "the server cannot read or store this now; try again later"
      }

  return answer


class _PageKey:
  """An application that asks browsers for its key, as a password.

  Requests to the service's API have the key in a header of their own.
  """

  def __init__(self, app: types.ASGIApp, key: str):
    self.app, self._wanted = app, _digest(key.encode())

  async def __call__(
    self, scope: types.Scope, receive: types.Receive, send: types.Send
  ) -> None:
    own = scope["type"] == "http" and not scope["path"].startswith(_API)
    if own and not self._is_known(dict(scope["headers"])):
      refused = responses.PlainTextResponse(
        "expected the server's key as the password",
        401,
        {"www-authenticate": 'Basic realm="ovi_jax", charset="UTF-8"'},
      )
      await refused(scope, receive, send)
      return
    await self.app(scope, receive, send)

  def _is_known(self, headers: Mapping[bytes, bytes]) -> bool:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    try:
      found = base64.b64decode(token, validate=True).partition(b":")[2]
    except binascii.Error:
      return False
    return scheme.lower() == b"basic" and hmac.compare_digest(
      _digest(found), self._wanted
    )


def _digest(key: bytes) -> bytes:
  """Of equal length for all keys, so that the time does not tell theirs."""
  return hashlib.sha256(key).digest()


class _LocalPage:
  """An application whose HTML pages load nothing from other hosts."""

  def __init__(self, app: types.ASGIApp, style: str):
    """Args:
    app: what is changed.
    style: that is added to its pages.
    """
    self.app, self._style = app, style

  async def __call__(
    self, scope: types.Scope, receive: types.Receive, send: types.Send
  ) -> None:
    start: types.Message | None = None
    parts: list[bytes] = []

    async def rewrite(message: types.Message) -> None:
      nonlocal start
      if message["type"] == "http.response.start":
        headers = {k.lower(): v for k, v in message["headers"]}
        if headers.get(b"content-type", b"").startswith(b"text/html"):
          start = message
          return
      elif start is not None and message["type"] == "http.response.body":
        parts.append(message.get("body", b""))
        if message.get("more_body"):
          return
        page = local_page(b"".join(parts).decode(), self._style).encode()
        headers = dict(start["headers"]) | {
          name.encode(): value.encode() for name, value in _HEADERS.items()
        }
        headers[b"content-length"] = str(len(page)).encode()
        await send({**start, "headers": list(headers.items())})
        message = {"type": "http.response.body", "body": page}
      await send(message)

    await self.app(scope, receive, rewrite)


def local_page(page: str, style: str) -> str:
  """An HTML page with a style, without the tags that load from other hosts."""
  before, end, after = _FOREIGN.sub("", page).partition("</head>")
  return f"{before}<style>{style}</style>{end}{after}"


def _presets(num_steps: int) -> list[dict[str, Any]]:
  """Names, numbers of steps and settings."""
  made = []
  for name, part in PRESETS.items():
    steps = max(1, math.ceil(part * num_steps))
    changed = {} if steps == num_steps else {"num_steps": steps}
    made.append({"name": name, "about": f"{steps} steps", "settings": changed})
  return made


def _word_groups() -> list[dict[str, Any]]:
  """Words, colours with what they look like."""
  return [
    {
      "name": name,
      "words": [
        {
          "text": word,
          "colour": "rgb({}, {}, {})".format(*scene.COLOURS[word])
          if word in scene.COLOURS
          else "",
        }
        for word in words
      ],
    }
    for name, words in WORDS.items()
  ]


def _job(job: jobs.Job) -> dict[str, Any]:
  """A job as the page shows it."""
  return {
    "id": job.id,
    "status": job.status,
    "prompt": job.request.prompt,
    "seed": job.request.settings.get("seed"),
    "step": job.step,
    "num_steps": job.num_steps,
    "position": job.position,
    "seconds_left": job.seconds_left,
    "error": job.error,
    "clip": job.clip,
  }


def _clip(clip: galleries.Clip, has_latents: bool) -> dict[str, Any]:
  """A clip as the page shows it."""
  stem = parse.quote(clip.stem)
  has_attention = has_latents and not any(
    clip.recipe.get(name) for name in ("generate", "windows")
  )
  return {
    "name": clip.name,
    "version": clip.version,
    "prompt": clip.prompt,
    "seed": clip.seed,
    "about": f"seed {clip.seed}",
    "kind": "audio" if clip.is_sound else "video",
    "source": f"{CLIPS}/{parse.quote(clip.name)}?v={clip.version}",
    "recipe": f"{CLIPS}/{stem}.json",
    "latents": f"{CLIPS}/{stem}.npz" if has_latents else "",
    "attention": has_attention,
    "settings": clip.settings,
  }


def _file(gallery: galleries.Gallery, name: str) -> responses.Response:
  """A clip, its latents, or its recipe without paths."""
  stem, _, ending = name.rpartition(".")
  try:
    if ending == "json":
      clip = gallery.find_stem(stem)
      return responses.JSONResponse(clip.recipe, headers=_HEADERS)
    if ending == "npz":
      latents = gallery.latents(gallery.find_stem(stem))
      if latents is None:
        raise ValueError("the latents of this clip were not saved")
      kind = "application/octet-stream"
      return responses.FileResponse(latents, media_type=kind, headers=_HEADERS)
    path = gallery.path(name)
  except ValueError as error:
    raise fastapi.HTTPException(404, str(error)) from error
  return _media(path)


def _film(gallery: galleries.Gallery, name: str) -> responses.Response:
  """The attention maps of a clip."""
  try:
    clip = gallery.path(name)
    path = attention_maps.files_of(clip)[0]
    inside = f"{path.parent.name}/{path.name}"
    film = pathlib.Path(files.inside(gallery.folder, inside))
    if not maps.is_current(film, clip):
      raise ValueError("the maps are of an earlier clip")
    return _media(film)
  except (OSError, ValueError) as error:
    raise fastapi.HTTPException(404, "there are no such maps") from error


def _media(path: Any) -> responses.Response:
  """A file whose address changes with it."""
  cache = {"cache-control": "private, max-age=31536000, immutable"}
  kind = outputs.MEDIA_TYPES[path.suffix]
  return responses.FileResponse(path, media_type=kind, headers=_HEADERS | cache)


def _a_text(value: Any, limit: int) -> str:
  """ValueError if a value is no text, or too long."""
  if not isinstance(value, str):
    raise ValueError("expected a text")
  if len(value) > limit:
    raise ValueError(
      f"expected a text of at most {limit} characters, got {len(value)}"
    )
  return value


def _field(asked: Any, name: str) -> str:
  """A text in an object; empty if there is none."""
  value = asked.get(name) if isinstance(asked, dict) else None
  return value if isinstance(value, str) else ""


def _assets() -> pathlib.Path:
  return pathlib.Path(str(resources.files("ovi_jax.studio"))) / "assets"


def _read(name: str) -> str:
  """A file of the page."""
  return (_assets() / name).read_text("utf-8")
