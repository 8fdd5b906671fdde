"""A pipeline whose models are trivial: a clip is its noise, in few frames.

Everything around the models is the real one: checks, batches, files.
"""

import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import synthetic
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import attention_maps
from ovi_jax.sampling import denoise
from ovi_jax.sampling import opening
from ovi_jax.sampling import pipeline as pipelines
from ovi_jax.sampling import settings as settings_lib

SIDE = 32  # pixels of a frame


class Models:
  """Text encoder, denoiser, decoder and encoders in one.

  Attributes:
    batches: sizes of the batches that were denoised; 0 for attention maps.
    step_seconds: that a step takes.
    began: set once a batch is denoised.
    gate: if it is not set, steps wait for it.
    voices: shapes of the reference voices of each batch; () without any.
    fail: raises what it wants to at the beginning of a batch.
  """

  def __init__(self, components: Any, step_seconds: float = 0.0):
    self.components, self.step_seconds = components, step_seconds
    self.batches: list[int] = []
    self.voices: list[tuple[int, ...]] = []
    self.began, self.gate = threading.Event(), threading.Event()
    self.gate.set()
    self.fail = lambda batch: None

  def texts(self, texts):
    return {text: np.zeros((1, 2), np.float32) for text in texts}

  def restricted(self, components):
    del components
    return self

  def sample(
    self,
    noise,
    positives,
    negative,
    settings,
    given,
    on_step,
    voices_BRC=None,
  ):
    del negative, given
    self.voices.append(np.shape(voices_BRC))
    self.batches.append(len(positives))
    self.began.set()
    self.fail(len(positives))
    x = jax.tree.map(jnp.asarray, noise)
    for number in range(1, settings.num_steps + 1):
      assert self.gate.wait(60)
      time.sleep(self.step_seconds)
      on_step(
        denoise.Progress(
          finished=number, total=settings.num_steps, predict=lambda: x
        )
      )
    return x

  def maps(self, latents, noise, positive, given, heads):
    del noise, positive, given, heads
    _, T, H, W, _ = latents.video.shape
    S = latents.audio.shape[1]
    self.batches.append(0)
    return attention_maps.Maps(
      audio_STHW=np.full((S, T, H, W), 1 / (T * H * W), np.float32),
      video_THWS=np.full((T, H, W, S), 1 / S, np.float32),
      audio_near_GN=np.ones((1, 1), np.float32),
      video_near_GN=np.ones((1, 1), np.float32),
    )

  def frames(self, latents_BTHWC):
    grey = int(1000 * np.abs(np.asarray(latents_BTHWC)).mean()) % 256
    for count in (1, 4):
      yield np.full((count, SIDE, SIDE, 3), grey, np.uint8)

  def wave(self, latents_BTC):
    return np.clip(np.ravel(latents_BTC), -1, 1)

  def encode(self, given):
    shape = np.shape(given)
    if len(shape) == 2:  # a wave
      return jnp.zeros((1, shape[1] // 512, 20))
    _, count, rows, columns, _ = shape
    return jnp.zeros((1, 1 + (count - 1) // 4, rows // 16, columns // 16, 16))


def pipeline(step_seconds: float = 0.0) -> tuple[pipelines.Pipeline, Models]:
  """A pipeline with the settings of the small Ovi, and its models."""
  settings = settings_lib.Settings.from_overrides({})
  components = opening.components_of(
    synthetic.WEIGHTS,
    weights_dir.read(synthetic.WEIGHTS),
    settings,
    jax.devices()[:1],
    "cpu",
  )
  models = Models(components, step_seconds)
  made = pipelines.Pipeline(components)
  names = ("text", "denoiser", "decoder", "video_encoder", "audio_encoder")
  made._loaded = dict.fromkeys(names, models)
  return made, models
