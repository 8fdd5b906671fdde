"""Builds chat completion requests for clips.

From JPEGs and PCM (int16 little-endian, mono, 16 kHz) to the request body of
`/v1/chat/completions` (OpenAI, vLLM): images as data URLs, audio
as base64 wav, the response format as a JSON schema.
"""

import base64
import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from ovi_jax.curation.captioning import cache
from ovi_jax.curation.captioning import instruction
from ovi_jax.curation.captioning import responses
from ovi_jax.endpoints import client
from ovi_jax.endpoints import credentials
from ovi_jax.media import wav

MAX_RESPONSE_BYTES = 4 << 20  # bytes
_OWN = frozenset(["model", "messages", "stream", "n"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestConfig:
  """Parameters shared by all requests.

  Attributes:
    model: model name at the endpoint.
    instruction: replaces the default instruction; "" for the default.
    temperature: sampling temperature.
    max_tokens: maximum tokens per response.
    structured_output: send the JSON schema as `response_format`.
    extra_body: JSON values merged into the request.
  """

  model: str
  instruction: str
  temperature: float
  max_tokens: int
  structured_output: bool
  extra_body: Mapping[str, Any]

  def __post_init__(self):
    if own := _OWN & set(self.extra_body):
      raise ValueError(f"extra_body: {sorted(own)} cannot be set there")


def build_request(
  config: RequestConfig, frames: Sequence[bytes], pcm: bytes
) -> dict[str, Any]:
  """The request for a clip.

  Args:
    config: parameters shared by all requests.
    frames: JPEGs in order; empty for audio only.
    pcm: audio; b"" if silent.
  """
  has_video, has_audio = bool(frames), bool(pcm)
  content: list[dict[str, Any]] = [
    {
      "type": "image_url",
      "image_url": {"url": f"data:image/jpeg;base64,{_base64(frame)}"},
    }
    for frame in frames
  ]
  if has_audio:
    audio = {"data": _base64(wav.from_pcm(pcm)), "format": "wav"}
    content.append({"type": "input_audio", "input_audio": audio})
  task = config.instruction or instruction.for_clip(has_video, has_audio)
  content.append({"type": "text", "text": task})
  body = {
    "model": config.model,
    "messages": [{"role": "user", "content": content}],
    "temperature": config.temperature,
    "max_tokens": config.max_tokens,
  }
  if config.structured_output:
    schema = responses.schema(has_video, has_audio)
    named = {"name": "caption", "strict": True, "schema": schema}
    body["response_format"] = {"type": "json_schema", "json_schema": named}
  return {**body, **config.extra_body}


def build_repair_request(
  body: Mapping[str, Any], answer: str, error: responses.InvalidResponse
) -> dict[str, Any]:
  """The request, an invalid response to it, and the validation errors."""
  messages = [
    *body["messages"],
    {"role": "assistant", "content": answer},
    {"role": "user", "content": instruction.for_repair(error)},
  ]
  return {**body, "messages": messages}


def _base64(value: bytes) -> str:
  """Base64 text."""
  return base64.b64encode(value).decode()


def _completion(
  found: Any, redaction: credentials.Redaction
) -> cache.Completion:
  """The first choice of a response."""
  choice, usage = found["choices"][0], found.get("usage")
  message = choice["message"].get("content") or ""
  return cache.Completion(
    text=redaction.text(str(message)),
    finish_reason=redaction.text(str(choice.get("finish_reason") or "")),
    tokens_in=_tokens(usage, "prompt_tokens"),
    tokens_out=_tokens(usage, "completion_tokens"),
  )


def _tokens(usage: Any, name: str) -> int:
  """A token count; 0 if it is invalid, which does not fail the response."""
  count = usage.get(name) if isinstance(usage, dict) else None
  if not isinstance(count, int) or isinstance(count, bool):
    return 0
  return count if 0 <= count < 2**53 else 0


ROUTE = client.Route(
  path="chat/completions",
  expected="a chat completion",
  max_bytes=MAX_RESPONSE_BYTES,
  parse=_completion,
  tokens=lambda found: found.tokens_in + found.tokens_out,
)
