"""The nodes: a clip, or sound alone, from a prompt and given media; LoRAs.

IMAGE is float [B, H, W, C] in [0, 1], AUDIO a dict of `waveform` [B, C, A] and
`sample_rate`, VIDEO one of ComfyUI's video objects.
"""

import contextlib
import io
import os
import pathlib
import tempfile
import time
import wave
from typing import Any

from . import client as clients

URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "OVI_STUDIO_API_KEY"
POLL = 0.25  # seconds
RECOMMENDED = "0 (steps) or -1 (guidance): the default of the weights."
_SECONDS = {
  "default": 0.0,
  "min": 0.0,
  "max": 300.0,
  "step": 0.1,
  "tooltip": "Length in seconds; with `extend`, of the new part. 0: the default"
  " of the weights.",
}


class OviVideo:
  """Makes a clip with sound."""

  CATEGORY = "video/ovi"
  FUNCTION = "make"
  RETURN_TYPES = ("VIDEO",)
  RETURN_NAMES = ("video",)
  DESCRIPTION = "A video with sound from a prompt, through the ovi_jax service."

  @classmethod
  def INPUT_TYPES(cls) -> dict[str, Any]:
    largest = 2**32 - 1
    return {
      "required": {
        "prompt": (
          "STRING",
          {
            "multiline": True,
            "default": "A red ball bounces on a wooden floor."
            " Audio: dull wooden knocks.",
          },
        ),
        "seed": (
          "INT",
          {
            "default": 0,
            "min": 0,
            "max": largest,
            "control_after_generate": True,
          },
        ),
        "width": ("INT", {"default": 1280, "min": 32, "max": 8192}),
        "height": ("INT", {"default": 704, "min": 32, "max": 8192}),
        "num_steps": (
          "INT",
          {"default": 0, "min": 0, "max": 1000, "tooltip": RECOMMENDED},
        ),
        "video_guidance": (
          "FLOAT",
          {"default": -1.0, "min": -1.0, "max": 100.0, "tooltip": RECOMMENDED},
        ),
        "audio_guidance": (
          "FLOAT",
          {"default": -1.0, "min": -1.0, "max": 100.0, "tooltip": RECOMMENDED},
        ),
        "url": (
          "STRING",
          {"default": URL, "tooltip": "Address of the ovi_jax service."},
        ),
      },
      "optional": {
        "first_image": ("IMAGE",),
        "last_image": ("IMAGE",),
        "video": ("VIDEO", {"tooltip": "A sound is generated for this video."}),
        "audio": ("AUDIO", {"tooltip": "A video is generated for this sound."}),
        "extend": ("VIDEO", {"tooltip": "Video to continue."}),
        "keep": (
          "STRING",
          {
            "default": "",
            "tooltip": "Intervals in seconds to keep, such as 0-2,4-5.",
          },
        ),
        "negative_prompt": (
          "STRING",
          {
            "default": "",
            "multiline": True,
            "tooltip": "Empty: the default of the weights.",
          },
        ),
        # Workflows have values by place: new widgets come last.
        "seconds": ("FLOAT", _SECONDS),
        "generate": (
          ["both", "video"],
          {"default": "both", "tooltip": "Video with sound, or silent."},
        ),
        "lora": ("OVI_LORA",),
        "voice": (
          "AUDIO",
          {
            "tooltip": "1 to 3 s of the voice that speaks, for weights that"
            " were trained with reference voices."
          },
        ),
      },
    }

  def make(
    self,
    prompt: str,
    seed: int,
    width: int,
    height: int,
    num_steps: int,
    video_guidance: float,
    audio_guidance: float,
    url: str,
    first_image: Any = None,
    last_image: Any = None,
    video: Any = None,
    audio: Any = None,
    extend: Any = None,
    seconds: float = 0.0,
    generate: str = "both",
    keep: str = "",
    negative_prompt: str = "",
    lora: str = "",
    voice: Any = None,
  ) -> tuple[Any]:
    """Ask the service for a clip and wait for it."""
    fields = {
      "prompt": prompt,
      "seed": str(seed),
      "size": f"{width}x{height}",
      "num_steps": str(num_steps or ""),
      "guidance_scale[video]": _chosen(video_guidance),
      "guidance_scale[audio]": _chosen(audio_guidance),
      "seconds": _length(seconds),
      "generate": generate,
      "keep": keep.strip(),
      "negative_prompt": negative_prompt.strip(),
      "lora": lora,
    }
    given = {
      "input_reference": first_image is not None and png(first_image),
      "last_image": last_image is not None and png(last_image),
      "video": video is not None and mp4(video),
      "audio": audio is not None and wav(audio),
      "extend": extend is not None and mp4(extend),
      "voice": voice is not None and wav(voice),
    }
    data = _made(url, fields, given)
    from comfy_api.latest import InputImpl

    return (InputImpl.VideoFromFile(io.BytesIO(data)),)


class OviSound:
  """Makes sound alone."""

  CATEGORY = "audio/ovi"
  FUNCTION = "make"
  RETURN_TYPES = ("AUDIO",)
  RETURN_NAMES = ("audio",)
  DESCRIPTION = "Speech and sound from a prompt, through the ovi_jax service."

  @classmethod
  def INPUT_TYPES(cls) -> dict[str, Any]:
    inputs = OviVideo.INPUT_TYPES()
    required = ("prompt", "seed", "num_steps", "audio_guidance", "url")
    optional = ("audio", "keep", "negative_prompt", "seconds", "lora", "voice")
    return {
      "required": {name: inputs["required"][name] for name in required},
      "optional": {
        **{name: inputs["optional"][name] for name in optional},
        "audio": (
          "AUDIO",
          {"tooltip": "Sound to continue or to fill in, see keep."},
        ),
      },
    }

  def make(
    self,
    prompt: str,
    seed: int,
    num_steps: int,
    audio_guidance: float,
    url: str,
    audio: Any = None,
    seconds: float = 0.0,
    keep: str = "",
    negative_prompt: str = "",
    lora: str = "",
    voice: Any = None,
  ) -> tuple[Any]:
    """Ask the service for sound and wait for it."""
    fields = {
      "prompt": prompt,
      "seed": str(seed),
      "generate": "audio",
      "num_steps": str(num_steps or ""),
      "guidance_scale[audio]": _chosen(audio_guidance),
      "seconds": _length(seconds),
      "keep": keep.strip(),
      "negative_prompt": negative_prompt.strip(),
      "lora": lora,
    }
    given = {
      "audio": audio is not None and wav(audio),
      "voice": voice is not None and wav(voice),
    }
    return (from_wav(_made(url, fields, given)),)


class OviLora:
  """A LoRA for a clip; several are chained."""

  CATEGORY = "video/ovi"
  FUNCTION = "add"
  RETURN_TYPES = ("OVI_LORA",)
  RETURN_NAMES = ("lora",)
  DESCRIPTION = "A LoRA of the folder that the service was started with."

  @classmethod
  def INPUT_TYPES(cls) -> dict[str, Any]:
    return {
      "required": {
        "name": ("STRING", {"default": "style.safetensors"}),
        "strength": ("FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0}),
      },
      "optional": {"lora": ("OVI_LORA",)},
    }

  def add(self, name: str, strength: float, lora: str = "") -> tuple[str]:
    """Append a LoRA to those before it."""
    return (",".join(filter(None, [lora, f"{name.strip()}:{strength:g}"])),)


def _chosen(guidance: float) -> str:
  return "" if guidance < 0 else f"{guidance:g}"


def _length(seconds: float) -> str:
  return f"{seconds:g}" if seconds > 0 else ""


def _made(url: str, fields: dict[str, str], given: dict[str, Any]) -> bytes:
  """The file of a clip that the service makes; empty fields are left out."""
  client = clients.Client(url, os.environ.get(KEY_VARIABLE, ""))
  asked = client.create(
    {name: value for name, value in fields.items() if value},
    {name: value for name, value in given.items() if value},
  )
  return _wait(client, asked)


def _wait(client: clients.Client, found: dict[str, Any]) -> bytes:
  """Wait for a clip, with ComfyUI's progress bar and its interrupt button."""
  import comfy.model_management
  import comfy.utils

  bar = comfy.utils.ProgressBar(100)
  try:
    while found["status"] in ("queued", "in_progress"):
      bar.update_absolute(found["progress"], 100)
      comfy.model_management.throw_exception_if_processing_interrupted()
      time.sleep(POLL)
      found = client.get(found["id"])
  except BaseException:
    with contextlib.suppress(clients.ServiceError):
      client.cancel(found["id"])
    raise
  if found["status"] != "completed":
    raise clients.ServiceError(found["error"]["message"])
  bar.update_absolute(100, 100)
  return client.content(found["id"])


def png(image: Any) -> bytes:
  """The first picture of an IMAGE as PNG."""
  import numpy as np
  from PIL import Image

  pixels_HWC = np.asarray(image[0].cpu().numpy(), np.float32)[..., :3]
  rounded = np.rint(255 * np.clip(pixels_HWC, 0, 1)).astype(np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(rounded).save(buffer, "PNG")
  return buffer.getvalue()


def wav(audio: Any) -> bytes:
  """The first sound of an AUDIO as 16-bit WAV."""
  import numpy as np

  wave_CA = np.asarray(audio["waveform"][0].cpu().numpy(), np.float32)
  samples_AC = np.rint(32767 * np.clip(wave_CA.T, -1, 1)).astype("<i2")
  buffer = io.BytesIO()
  with wave.open(buffer, "wb") as file:
    file.setparams(
      (wave_CA.shape[0], 2, int(audio["sample_rate"]), 0, "NONE", "")
    )
    file.writeframes(samples_AC.tobytes())
  return buffer.getvalue()


def from_wav(data: bytes) -> dict[str, Any]:
  """The AUDIO of a 16-bit WAV."""
  import numpy as np
  import torch

  with wave.open(io.BytesIO(data)) as file:
    channels, rate = file.getnchannels(), file.getframerate()
    samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
  wave_CA = (samples.reshape(-1, channels).T / 32768).astype(np.float32)
  # A copy: torch does not take read-only memory.
  return {
    "waveform": torch.from_numpy(wave_CA.copy())[None],
    "sample_rate": rate,
  }


def mp4(video: Any) -> bytes:
  """A VIDEO as mp4."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "video.mp4"
    video.save_to(str(path))
    return path.read_bytes()


NODE_CLASS_MAPPINGS = {
  "OviVideo": OviVideo,
  "OviSound": OviSound,
  "OviLora": OviLora,
}
NODE_DISPLAY_NAME_MAPPINGS = {
  "OviVideo": "Ovi video with sound",
  "OviSound": "Ovi sound",
  "OviLora": "Ovi LoRA",
}
