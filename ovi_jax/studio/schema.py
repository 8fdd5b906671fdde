"""Requests and answers of the HTTP API, in the form of OpenAI's video API.

Fields that OpenAI's has mean the same here; fields of `configs/sample.py` and
of given media are added.
"""

import base64
import binascii
import io
import re
from collections.abc import Mapping
from typing import Annotated
from typing import Any
from typing import Generic
from typing import Literal
from typing import TypeVar

import pydantic

from ovi_jax import untrusted
from ovi_jax.studio import jobs
from ovi_jax.studio import requests

T = TypeVar("T")
MODEL = "ovi"
# Given files by their names in the API: OpenAI's for the first frame.
FILES = {
  "input_reference": "image",
  "last_image": "last_image",
  "video": "video",
  "audio": "audio",
  "extend": "extend",
  "voice": "voice",
}
# Status of a job -> that of OpenAI's API.
STATUSES = {
  jobs.QUEUED: "queued",
  jobs.RUNNING: "in_progress",
  jobs.FINISHED: "completed",
  jobs.FAILED: "failed",
  jobs.CANCELLED: "failed",
}
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)
_DATA_URL = re.compile(
  r"data:[\w.+-]+/[\w.+-]+(?:;[\w=.+-]+)*;base64,", re.ASCII
)


class Pair(pydantic.BaseModel, Generic[T]):
  """A value for each modality."""

  model_config = pydantic.ConfigDict(extra="forbid")
  video: T | None = None
  audio: T | None = None


class Trim(pydantic.BaseModel):
  """The part of each given file that is used."""

  model_config = pydantic.ConfigDict(extra="forbid")
  video: str | tuple[float, float] | None = None
  audio: str | tuple[float, float] | None = None
  extend: str | tuple[float, float] | None = None
  voice: str | tuple[float, float] | None = None


class Reference(pydantic.BaseModel):
  """A file within JSON."""

  model_config = pydantic.ConfigDict(extra="forbid")
  image_url: str = pydantic.Field(description="A data: URL.")


Media = Annotated[
  str | Reference | None,
  pydantic.Field(description="A data: URL; in multipart, a file."),
]


class CreateVideo(pydantic.BaseModel):
  """A clip to make."""

  model_config = pydantic.ConfigDict(extra="forbid", protected_namespaces=())
  prompt: str = pydantic.Field(
    description="Description of picture, speech and sound.", min_length=1
  )
  model: str | None = pydantic.Field(None, description="See GET /v1/models.")
  size: str | None = pydantic.Field(
    None,
    description="Aspect ratio as WIDTHxHEIGHT; the area is that of the weights."
    " 1280x704, the default, means the weights' own size.",
  )
  seconds: str | float | None = pydantic.Field(
    None,
    description="Length of the clip; with extend, of the new part. Default:"
    " that of the input media or of the weights.",
  )
  generate: Literal["both", "video", "audio"] = pydantic.Field(
    "both", description="Video with sound, a silent video, or sound (wav)."
  )
  input_reference: Media = pydantic.Field(
    None, description="Picture of the first frame."
  )
  last_image: Media = pydantic.Field(
    None, description="Picture of the last frame."
  )
  video: Media = pydantic.Field(
    None,
    description="Video whose sound is replaced; with keep, the given intervals"
    " of picture and sound.",
  )
  audio: Media = pydantic.Field(
    None, description="Sound for which a video is generated."
  )
  extend: Media = pydantic.Field(
    None, description="Clip to continue; the result begins with it."
  )
  voice: Media = pydantic.Field(
    None,
    description="Sound of 1 to 3 s whose voice speaks in the clip, for weights"
    " that were trained with reference voices.",
  )
  trim: Trim | None = pydantic.Field(
    None,
    description="Start and end in seconds that are used of video, audio, extend"
    " or voice, such as 1.5-4; all other times count from the start.",
  )
  keep: str | list[tuple[float, float]] | None = pydantic.Field(
    None,
    description="Intervals of the input media to keep in seconds, such as"
    " 0-2,4-5.",
  )
  keep_audio_until: float | None = pydantic.Field(
    None, description="Keep the video's sound up to this second."
  )
  seed: int | None = pydantic.Field(None, description="Seed of the noise.")
  num_steps: int | None = pydantic.Field(None, description="Denoising steps.")
  solver: str | None = pydantic.Field(
    None, description="unipc, dpm++ or euler."
  )
  flow_shift: float | None = pydantic.Field(
    None, description="Shift of noise levels towards noise."
  )
  guidance_scale: float | Pair[float] | None = pydantic.Field(
    None, description="Classifier-free guidance scale."
  )
  negative_prompt: str | Pair[str] | None = pydantic.Field(
    None, description="Negative prompt: what the clip should not contain."
  )
  slg_layer: int | None = pydantic.Field(
    None, description="Block that the negative pass skips; 0 for none."
  )
  conditioning: str | None = pydantic.Field(
    None,
    description="How input latents are shown to the model: clean or renoise.",
  )
  voice_guidance_scale: float | None = pydantic.Field(
    None, description="Guidance scale of the reference voice; 1 for none."
  )
  lora: str | None = pydantic.Field(
    None,
    description="LoRA files of the server, NAME[:STRENGTH] with commas; empty"
    " for none.",
  )

  def settings(self) -> dict[str, Any]:
    """Settings of the request, see `requests.SETTINGS`."""
    found = {
      name: value
      for name in requests.SETTINGS
      if (value := getattr(self, name, None)) is not None
    }
    for name, value in found.items():
      if isinstance(value, Pair):
        found[name] = value.model_dump(exclude_none=True)
    if self.size is not None:
      match = _SIZE.fullmatch(self.size)
      if match is None:
        raise FieldError("size", "expected WIDTHxHEIGHT such as 1280x704")
      found |= {"width": int(match[1]), "height": int(match[2])}
    return found

  def length(self) -> float | None:
    """The seconds that are asked for; `None` if they are not.

    Raises:
      FieldError: they are no number.
    """
    if self.seconds is None or self.seconds == "":
      return None
    try:
      return float(self.seconds)
    except ValueError as error:
      raise FieldError("seconds", "expected a number") from error

  def given(self) -> dict[str, Any]:
    """Given media of a JSON request, see `requests.GIVEN`."""
    found: dict[str, Any] = {
      "keep": self.keep,
      "keep_audio_until": self.keep_audio_until,
    }
    if self.trim is not None:
      found["trim"] = self.trim.model_dump(exclude_none=True)
    for name, ours in FILES.items():
      value = getattr(self, name)
      if isinstance(value, Reference):
        value = value.image_url
      if value is not None:
        found[ours] = _decoded(name, value)
    return found


def _decoded(name: str, url: str) -> io.BytesIO:
  """The bytes of a data URL; other addresses are not fetched."""
  match = _DATA_URL.match(url)
  if match is None:
    raise FieldError(
      name,
      "expected a data: URL with base64; other addresses are not fetched, send"
      " the file as multipart/form-data",
    )
  try:
    return io.BytesIO(base64.b64decode(url[match.end() :], validate=True))
  except binascii.Error as error:
    raise FieldError(name, f"expected base64: {error}") from error


class Problem(pydantic.BaseModel):
  """Why a clip was not made."""

  code: str
  message: str


class Video(pydantic.BaseModel):
  """A clip that was asked for."""

  id: str
  object: Literal["video"] = "video"
  model: str = MODEL
  status: Literal["queued", "in_progress", "completed", "failed"]
  progress: int = pydantic.Field(description="Percent.")
  created_at: int = pydantic.Field(description="Seconds since 1970.")
  completed_at: int | None
  expires_at: int | None = None
  prompt: str
  size: str = pydantic.Field(description="WIDTHxHEIGHT in pixels.")
  seconds: str
  error: Problem | None
  remixed_from_video_id: str | None = None
  seed: int
  step: int = pydantic.Field(description="Finished denoising steps.")
  num_steps: int
  position: int | None = pydantic.Field(
    description="Place in the queue, 1 for the next."
  )
  seconds_left: float | None = pydantic.Field(description="Estimated.")
  file_name: str | None = pydantic.Field(
    description="Of the clip in the server's output folder."
  )


class VideoList(pydantic.BaseModel):
  """A page of clips."""

  object: Literal["list"] = "list"
  data: list[Video]
  first_id: str | None
  last_id: str | None
  has_more: bool


class Deleted(pydantic.BaseModel):
  """A deleted clip."""

  id: str
  object: Literal["video.deleted"] = "video.deleted"
  deleted: Literal[True] = True


class Model(pydantic.BaseModel):
  """The weights of the server."""

  id: str = MODEL
  object: Literal["model"] = "model"
  created: int = 0
  owned_by: str = "ovi_jax"


class ModelList(pydantic.BaseModel):
  """The models that are served."""

  object: Literal["list"] = "list"
  data: list[Model]


class ErrorDetail(pydantic.BaseModel):
  """What went wrong."""

  message: str
  type: str
  param: str | None
  code: str | None


class ErrorBody(pydantic.BaseModel):
  """An answer with an error."""

  error: ErrorDetail


def video(job: jobs.Job) -> Video:
  """A job as the API shows it."""
  progress = 100 * job.step // max(1, job.num_steps)
  problem = None
  if job.status == jobs.CANCELLED:
    problem = Problem(code="cancelled", message="the job was cancelled")
  elif job.status == jobs.FAILED:
    problem = Problem(code="failed", message=job.error or "unknown")
  finished = job.status == jobs.FINISHED
  status: Any = STATUSES[job.status]
  return Video(
    id=job.id,
    status=status,
    progress=100 if finished else min(99, progress),
    created_at=int(job.created),
    completed_at=int(job.ended) if finished and job.ended else None,
    prompt=job.request.prompt,
    size=f"{job.width}x{job.height}",
    seconds=f"{job.seconds:.2f}".rstrip("0").rstrip("."),
    error=problem,
    seed=job.request.settings["seed"],
    step=job.step,
    num_steps=job.num_steps,
    position=job.position,
    seconds_left=job.seconds_left,
    file_name=job.clip,
  )


def parse(values: Mapping[str, Any]) -> CreateVideo:
  """Check the fields of a request.

  Raises:
    ValueError: the first problem; its `param` is the field.
  """
  try:
    return CreateVideo.model_validate(values)
  except pydantic.ValidationError as error:
    first = error.errors(include_url=False, include_input=False)[0]
    name = untrusted.printable(str(next(iter(first["loc"]), "")), 60)
    raise FieldError(name, first["msg"]) from error


class FieldError(ValueError):
  """A field of a request is wrong.

  Attributes:
    field: its name.
  """

  def __init__(self, field: str, message: str):
    super().__init__(f"{field}: {message}" if field else message)
    self.field = field
