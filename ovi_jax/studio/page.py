"""The page of the studio: a Gradio page on the service's application.

The page is one HTML component. Its markup, style and script are in `assets/`;
the script calls `Functions` through Gradio, and makes clips through the API of
the service. Texts reach the page as JSON and are put in as text. What Gradio's
pages load from other hosts is left out, and browsers are told to load nothing
from there.
"""

import base64
import functools
import io
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
import numpy as np
from fastapi import responses
from PIL import Image
from starlette import types

from ovi_jax import geometry
from ovi_jax import prompt as prompts
from ovi_jax.sampling import planning
from ovi_jax.sampling import previews
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.studio import engine as engines
from ovi_jax.studio import gallery as galleries
from ovi_jax.studio import jobs
from ovi_jax.synthetic.world import scene

PATH, CLIPS, EXAMPLES = "/studio", "/clips", "/examples"
SUBMIT = "/v1/videos"
MAX_SHOWN = 48  # clips of the gallery in one answer
MAX_JOBS = 50  # that have not ended, in one answer
PEAKS = 240  # of a preview's waveform
PREVIEW_FRAMES = 16
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
_HEADERS = {
  # Gradio evaluates scripts and styles within its page.
  "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval'"
  " data: blob:; base-uri 'none'; form-action 'self'; object-src 'none';"
  " frame-ancestors 'none'",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
}
# Tags of an HTML page that load from another host.
_FOREIGN = re.compile(
  r"<link\b[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>"
  r"|<script\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>\s*</script>"
  r"|<meta\b[^>]*\bcontent=[\"']?(?:https?:)?//[^>]*>",
  re.IGNORECASE,
)


class Functions:
  """What the page asks the server, and gets as JSON.

  Each takes one argument, which may be anything that JSON can express.
  """

  def __init__(self, engine: engines.Engine, loras: Sequence[str] = ()):
    """Read the tokenizer and the examples.

    Args:
      engine: makes clips.
      loras: names of LoRA files that requests may use.
    """
    self.engine, self.loras = engine, tuple(loras)
    components = engine.pipeline.components
    self._variant = components.manifest.geometry
    self._manifest = components.manifest
    self._length = components.text_length
    self._tokenizer = components.tokenizer()
    self.gallery = galleries.Gallery(engine.store.folder)
    self.examples = galleries.Gallery(_assets() / "examples")
    self._previews: dict[str, dict[str, Any]] = {}

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
      "weights": _weights_line(self._manifest),
      "tags": {
        "speech": [prompts.SPEECH, prompts.SPEECH_END],
        "sound": [before, after],
      },
      "words": _word_groups() if knows_world else [],
      "examples": self._examples() if knows_world else [],
      "presets": _presets(recommended["num_steps"]),
      "seed": settings_lib.FIXED["seed"],
      "loras": list(self.loras),
      "submit": SUBMIT,
      "max_bytes": self.engine.limits.file_bytes,
      "max_characters": self.engine.limits.prompt_length,
    }

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
      _, notes = planning.read_prompt(
        text, self._variant, self._tokenizer, self._length
      )
    return {"segments": prompts.segments(text), "notes": notes}

  def live(self, asked: Any = None) -> dict[str, Any]:
    """Jobs that have not ended, the one that is shown, and its preview.

    Args:
      asked: `job`, the id of the one that is shown, and `preview`, the key of
        the preview that the page has.
    """
    shown, known = _field(asked, "job"), _field(asked, "preview")
    found = self.engine.query(
      limit=MAX_JOBS,
      newest_first=False,
      statuses=(jobs.RUNNING, jobs.QUEUED),
    )
    if shown and all(job.id != shown for job in found):
      try:
        found.append(self.engine.get(shown))
      except jobs.UnknownJobError:
        pass  # deleted, perhaps by another page
    running = {job.id for job in found if job.status == jobs.RUNNING}
    for id in self._previews.keys() - running:
      self._previews.pop(id, None)
    preview = self._preview(shown) if shown in running else None
    if preview is not None and preview["key"] == known:
      preview = None
    return {"jobs": [_job(job) for job in found], "preview": preview}

  def _preview(self, id: str) -> dict[str, Any] | None:
    made = self.engine.preview(id)
    if made is None:
      return None
    key = f"{id} {made.step}"
    shown = self._previews.get(id)
    if shown is None or shown["key"] != key:
      shown = {
        "key": key,
        "step": made.step,
        "picture": moving_picture(made),
        "peaks": peaks(made.audio),
      }
      self._previews[id] = shown
    return shown

  def cancel(self, id: Any) -> dict[str, Any]:
    """Cancel a job."""
    try:
      return _job(self.engine.cancel(_a_text(id, 200)))
    except jobs.UnknownJobError:
      raise ValueError("there is no such job; it may have been removed") from None

  def again(self, asked: Any) -> dict[str, Any]:
    """Make a clip of the gallery again, with another seed.

    Args:
      asked: `name` of the clip, and `seed`.
    """
    clip = self.gallery.find(_field(asked, "name"))
    seed = asked.get("seed")
    if not is_repeatable(clip):
      raise ValueError(
        "this clip was made from given files or LoRAs; give them again above"
      )
    config = clip.recipe.get("config")
    settings = {
      name: value
      for name, value in (config if isinstance(config, dict) else {}).items()
      if name in engines.SETTINGS
    }
    return _job(self.engine.submit(clip.prompt, {**settings, "seed": seed}))

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
    shown = found[start : start + MAX_SHOWN]
    return {"clips": [_clip(clip) for clip in shown], "total": len(found)}


def mount(
  app: fastapi.FastAPI, engine: engines.Engine, loras: Sequence[str] = ()
) -> None:
  """Put the page at `PATH`, and what it shows beside it.

  Args:
    app: of the service.
    engine: makes clips.
    loras: names of LoRA files that requests may use.
  """
  functions = Functions(engine, loras)
  routes = fastapi.APIRouter(include_in_schema=False)

  @routes.get("/")
  def home() -> responses.Response:
    return responses.RedirectResponse(f"{PATH}/")

  @routes.get(f"{CLIPS}/{{name}}")
  def clip(name: str) -> responses.Response:
    return _file(functions.gallery, name)

  @routes.get(f"{EXAMPLES}/{{name}}")
  def example(name: str) -> responses.Response:
    return _file(functions.examples, name)

  app.include_router(routes)
  gradio.mount_gradio_app(
    app,
    blocks(functions),
    path=PATH,
    css=_read("studio.css"),
    theme=_theme(),
    max_file_size=1,  # files are given to the service
    show_error=False,
    ssr_mode=False,
    footer_links=[],
  )
  mounted: Any = app.routes[-1]
  mounted.app = _LocalPage(mounted.app)


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


def _theme() -> gradio.themes.Base:
  """A theme of fonts that the system has."""
  return gradio.themes.Base(
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

  return answer


class _LocalPage:
  """An application whose HTML pages load nothing from other hosts."""

  def __init__(self, app: types.ASGIApp):
    self.app = app

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
        page = local_page(b"".join(parts).decode()).encode()
        headers = dict(start["headers"]) | {
          name.encode(): value.encode() for name, value in _HEADERS.items()
        }
        headers[b"content-length"] = str(len(page)).encode()
        await send({**start, "headers": list(headers.items())})
        message = {"type": "http.response.body", "body": page}
      await send(message)

    await self.app(scope, receive, rewrite)


def local_page(page: str) -> str:
  """An HTML page without the tags that load from other hosts."""
  return _FOREIGN.sub("", page)


def moving_picture(preview: previews.Preview) -> str:
  """The frames of a preview, some of them, as an animated picture.

  Returns:
    A data URL of a WebP file.
  """
  count = len(preview.frames)
  stride = math.ceil(count / PREVIEW_FRAMES)
  pictures = [Image.fromarray(f) for f in preview.frames[::stride]]
  file = io.BytesIO()
  pictures[0].save(
    file,
    "webp",
    save_all=True,
    append_images=pictures[1:],
    duration=round(1000 * stride / preview.fps),
    loop=0,
    quality=70,
    method=0,
  )
  return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def peaks(wave_A: np.ndarray) -> list[float]:
  """The largest magnitude of each of `PEAKS` parts of a waveform."""
  parts = np.array_split(np.abs(wave_A), min(PEAKS, max(1, len(wave_A))))
  return [round(float(part.max(initial=0.0)), 3) for part in parts]


def is_repeatable(clip: galleries.Clip) -> bool:
  """Whether a clip can be made again from its recipe alone."""
  given = (clip.recipe.get(n) for n in ("image", "given", "loras"))
  return isinstance(clip.recipe.get("prompt"), str) and not any(given)


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


def _weights_line(manifest: Any) -> str:
  """What the weights are, in a few words."""
  variant = manifest.geometry
  name = manifest.variant or "custom weights"
  side = math.isqrt(variant.area)
  frames = geometry.Clip(
    latent_frames=variant.latent_frames,
    latent_height=2,
    latent_width=2,
    audio_latents=variant.audio_latents,
  ).frames
  return f"{name}, about {side}×{side} pixels, {frames / geometry.FPS:.1f} s"


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


def _clip(clip: galleries.Clip) -> dict[str, Any]:
  """A clip as the page shows it."""
  stem = parse.quote(clip.name.removesuffix(galleries.SUFFIX))
  return {
    "name": clip.name,
    "version": clip.version,
    "prompt": clip.prompt,
    "seed": clip.seed,
    "about": f"seed {clip.seed}",
    "source": f"{CLIPS}/{stem}{galleries.SUFFIX}?v={clip.version}",
    "recipe": f"{CLIPS}/{stem}.json",
    "settings": clip.settings,
    "repeatable": is_repeatable(clip),
  }


def _file(gallery: galleries.Gallery, name: str) -> responses.Response:
  """A clip, or its recipe without paths."""
  stem, _, ending = name.rpartition(".")
  try:
    if ending == "json":
      clip = gallery.find(f"{stem}{galleries.SUFFIX}")
      return responses.JSONResponse(clip.recipe, headers=_HEADERS)
    path = gallery.path(name)
  except ValueError as error:
    raise fastapi.HTTPException(404, str(error)) from error
  cache = {"cache-control": "private, max-age=31536000, immutable"}
  return responses.FileResponse(
    path, media_type="video/mp4", headers=_HEADERS | cache
  )


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
