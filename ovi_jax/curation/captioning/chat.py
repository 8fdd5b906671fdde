"""A clip as a chat completion: frames, sound, the task; and asking again.

In: JPEGs, PCM (int16 little-endian, mono, 16 kHz). Out: the body of a request
to `/v1/chat/completions`, as OpenAI and vLLM read it: pictures as data URLs,
the sound as wav in base64, the shape of the answer as a JSON schema.
"""

import base64
import dataclasses
import io
import wave
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from ovi_jax import geometry
from ovi_jax.curation.captioning import instruction
from ovi_jax.curation.captioning import responses

_OWN = frozenset(["model", "messages", "stream", "n"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestConfig:
  """What all requests have in common.

  Attributes:
    model: its name at the endpoint.
    instruction: instruction in place of `instruction.task`; "" for that one.
    temperature: of sampling.
    max_tokens: of an answer.
    structured_output: whether the JSON schema is sent as `response_format`.
    extra_body: JSON values added to the request.
  """

  model: str
  instruction: str
  temperature: float
  max_tokens: int
  structured_output: bool
  extra_body: Mapping[str, Any]

  def __post_init__(self):
    if own := _OWN & set(self.extra_body):
      raise ValueError(f"extra: {sorted(own)} cannot be set there")


def build_request(
  config: RequestConfig, frames: Sequence[bytes], pcm: bytes
) -> dict[str, Any]:
  """A request with all of a clip.

  Args:
    config: what all requests have in common.
    frames: JPEGs in order; none for a sound alone.
    pcm: the sound; b"" without one.
  """
  seen, heard = bool(frames), bool(pcm)
  content: list[dict[str, Any]] = [
    {
      "type": "image_url",
      "image_url": {"url": f"data:image/jpeg;base64,{_base64(frame)}"},
    }
    for frame in frames
  ]
  if heard:
    sound = {"data": _base64(_wav(pcm)), "format": "wav"}
    content.append({"type": "input_audio", "input_audio": sound})
  task = config.instruction or instruction.for_clip(seen, heard)
  content.append({"type": "text", "text": task})
  body = {
    "model": config.model,
    "messages": [{"role": "user", "content": content}],
    "temperature": config.temperature,
    "max_tokens": config.max_tokens,
  }
  if config.structured_output:
    schema = responses.schema(seen, heard)
    named = {"name": "caption", "strict": True, "schema": schema}
    body["response_format"] = {"type": "json_schema", "json_schema": named}
  return {**body, **config.extra_body}


def build_repair_request(
  body: Mapping[str, Any], answer: str, error: responses.InvalidResponse
) -> dict[str, Any]:
  """The request with an unfit answer and what is wrong with it."""
  messages = [
    *body["messages"],
    {"role": "assistant", "content": answer},
    {"role": "user", "content": instruction.for_repair(error)},
  ]
  return {**body, "messages": messages}


def _base64(value: bytes) -> str:
  """Bytes as JSON can hold them."""
  return base64.b64encode(value).decode()


def _wav(pcm: bytes) -> bytes:
  """A wav file of a clip's sound."""
  file = io.BytesIO()
  with wave.open(file, "wb") as writer:
    writer.setnchannels(1)
    writer.setsampwidth(2)
    writer.setframerate(geometry.SAMPLE_RATE)
    writer.writeframes(pcm)
  return file.getvalue()
