"""The sizes of a whole release, and the shapes of its parameters.

Sizes are kept in the form the original's own configuration files use (see
`released.json` beside this file), so that a file that fits the original fits
here. They travel with converted weights.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ovi_jax import geometry
from ovi_jax.modality import AV
from ovi_jax.models import audio_vae
from ovi_jax.models import dit
from ovi_jax.models import fusion
from ovi_jax.models import umt5
from ovi_jax.models import vocoder
from ovi_jax.models.video_vae import codec
from ovi_jax.models.video_vae import config as video_vae

RELEASED = pathlib.Path(__file__).with_name("released.json")
# The components of a release, in the order a sample passes through them.
COMPONENTS = ("umt5", "fusion", "video_vae", "audio_vae", "vocoder")

_KEYS = {
  "umt5": ("t5", umt5.UMT5Config),
  "video_vae": ("video_vae", video_vae.VideoVAEConfig),
  "audio_vae": ("audio_vae", audio_vae.AudioVAEConfig),
  "vocoder": ("bigvgan", vocoder.VocoderConfig),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
  """Sizes of every component; `None` for one that is absent.

  Attributes:
    umt5: the text encoder's config.
    fusion: a tower for each modality.
    video_vae, audio_vae, vocoder: configs of the codecs.
    clip: default geometry, for weights that are no released variant.
  """

  umt5: Any
  fusion: AV[dit.DiTConfig]
  video_vae: Any
  audio_vae: Any
  vocoder: Any
  clip: geometry.Clip | None = None

  @classmethod
  def from_release(cls, sizes: Mapping[str, Any]) -> "Architecture":
    """Read sizes in the original's form.

    Args:
      sizes: keys `fusion` (`video`, `audio`), `t5`, `video_vae`, `audio_vae`,
        `bigvgan` and, optionally, `latents` (`T H W A`: video latent frames,
        rows, columns; audio latents).

    Raises:
      ValueError: a key is unknown or a part does not make sense; the message
        names the part.
    """
    known = {"fusion", "latents", *(key for key, _ in _KEYS.values())}
    unknown = sorted(sizes.keys() - known)
    if unknown or not sizes.get("fusion"):
      raise ValueError(
        f"architecture needs 'fusion' and may have {sorted(known)}; unknown:"
        f" {unknown}"
      )
    parts: dict[str, Any] = {}
    towers = {
      name: _read(f"fusion.{name}", dit.DiTConfig, tower)
      for name, tower in sizes["fusion"].items()
    }
    strange = towers.keys() - set(AV._fields)
    if strange:
      raise ValueError(f"fusion has towers video and audio, not {strange}")
    for name, (key, config) in _KEYS.items():
      parts[name] = _read(key, config, sizes[key]) if key in sizes else None
    clip = None
    if "latents" in sizes:
      latents = dict(sizes["latents"])
      if latents.keys() != set("THWA"):
        raise ValueError(f"latents must name T, H, W, A; got {list(latents)}")
      clip = geometry.Clip(
        latent_frames=latents["T"],
        latent_height=latents["H"],
        latent_width=latents["W"],
        audio_latents=latents["A"],
      )
    return cls(fusion=AV(**towers), clip=clip, **parts)

  def config(self, component: str) -> Any:
    """The sizes of one of `COMPONENTS`."""
    return getattr(self, component)

  @property
  def components(self) -> tuple[str, ...]:
    """The components that are present."""
    return tuple(c for c in COMPONENTS if self.config(c) is not None)


def released_sizes() -> dict[str, Any]:
  """Sizes of every released variant, in the original's form."""
  return json.loads(RELEASED.read_text())


def parameter_shapes(component: str, config: Any) -> dict[str, Any]:
  """Parameters of a component as nested shapes; takes no memory for them."""
  key = jax.random.key(0)
  return jax.eval_shape(functools.partial(_init, component, config), key)


def _init(component: str, config: Any, key: jax.Array) -> Mapping[str, Any]:
  """Random parameters, from arguments of the smallest size."""
  match component:
    case "umt5":
      ids = jnp.zeros((1, 1), jnp.int32)
      return umt5.UMT5Encoder(config).init(key, ids, ids)["params"]
    case "fusion":
      return _init_fusion(config, key)
    case "video_vae":
      return codec.init(config, key)
    case "audio_vae":
      mel = jnp.zeros((1, config.frames_per_latent, config.data_dim))
      return audio_vae.AudioVAE(config).init(key, mel)["params"]
    case "vocoder":
      mel = jnp.zeros((1, 8, config.mel_bins))
      return vocoder.BigVGAN(config).init(key, mel)["params"]
  raise ValueError(f"component {component!r} is not one of {COMPONENTS}")


def _init_fusion(
  config: AV[dit.DiTConfig], key: jax.Array
) -> Mapping[str, Any]:
  latents, times, text = {}, {}, {}
  for name, tower in config.present().items():
    latents[name] = jnp.zeros((1, *tower.patch, tower.channels))
    times[name] = jnp.zeros((1, 1))
    text[name] = jnp.zeros((1, 1, tower.text_width))
  model = fusion.FusionDiT(config)
  return model.init(key, AV(**latents), AV(**times), AV(**text))["params"]


def _read(name: str, config: Any, sizes: Any) -> Any:
  """One part's config, with the part's name in front of any complaint."""
  if not isinstance(sizes, Mapping):
    raise ValueError(f"{name}: expected sizes by name, got {sizes!r}")
  try:
    return config.from_release(dict(sizes))
  except (TypeError, ValueError) as error:
    raise ValueError(f"{name}: {error}") from error
