"""The sizes of a whole release, and the shapes of its parameters.

Sizes have the format of the original's configuration files (see
`released.json` beside this file), so those files can be used unchanged. They
are stored with converted weights.
"""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ovi_jax import geometry
from ovi_jax.attention import context
from ovi_jax.modality import AV
from ovi_jax.models import audio_vae
from ovi_jax.models import dit
from ovi_jax.models import fusion
from ovi_jax.models import shapes
from ovi_jax.models import umt5
from ovi_jax.models import vocoder
from ovi_jax.models.video_vae import codec
from ovi_jax.models.video_vae import config as video_vae

RELEASED = pathlib.Path(__file__).with_name("released.json")
# The components of a release, in the order a sample passes through them.
COMPONENTS = ("umt5", "fusion", "video_vae", "audio_vae", "vocoder")

# The sizes that a tower's latents have to agree with.
_LATENTS = {
  "video": ("video_vae", "z_dim"),
  "audio": ("audio_vae", "embed_dim"),
}
_KEYS = {
  "umt5": ("t5", umt5.UMT5Config),
  "video_vae": ("video_vae", video_vae.VideoVAEConfig),
  "audio_vae": ("audio_vae", audio_vae.AudioVAEConfig),
  "vocoder": ("bigvgan", vocoder.VocoderConfig),
}


# The largest value of each size, and of each item of a list, by the release's
# keys: 10 to 100 times the released one. Sizes are used before it is known
# whether parameters of such shapes exist, so they are bounded first.
LARGEST: Mapping[str, Mapping[str, float]] = {
  "fusion": {
    "dim": 2**16,
    "ffn_dim": 2**18,
    "freq_dim": 2**14,
    "text_dim": 2**16,
    "text_len": 2**14,
    "num_heads": 2**10,
    "num_layers": 2**9,
    "in_dim": 2**12,
    "out_dim": 2**12,
    "patch_size": 2**4,
    "window_size": -1,
    "eps": 0.1,
    "temporal_rope_scaling_factor": 64.0,
  },
  "t5": {
    "dim": 2**16,
    "dim_attn": 2**16,
    "dim_ffn": 2**18,
    "num_heads": 2**10,
    "encoder_layers": 2**9,
    "decoder_layers": 2**9,
    "vocab_size": 2**24,
    "num_buckets": 2**11,
  },
  "video_vae": {
    "dim": 2**13,
    "dec_dim": 2**13,
    "z_dim": 2**12,
    "dim_mult": 2**6,
    "num_res_blocks": 2**5,
    "latent_mean": 1e6,
    "latent_std": 1e6,
    "patch": 2**4,
  },
  "audio_vae": {
    "data_dim": 2**12,
    "embed_dim": 2**12,
    "hidden_dim": 2**14,
    "channel_multipliers": 2**6,
    "res_blocks": 2**5,
    "down_layers": 2**4,
    "mel_mean": 1e6,
    "mel_std": 1e6,
  },
  "bigvgan": {
    "mel_bins": 2**12,
    "upsample_initial_channel": 2**16,
    "upsample_rates": 2**6,
    "upsample_kernel_sizes": 2**8,
    "resblock_kernel_sizes": 2**8,
    "resblock_dilation_sizes": 2**8,
  },
  "latents": dict(zip("THWA", geometry.MAX_LATENTS.values())),
}
# The most items of a list: levels, stages and what is within them are unrolled.
LONGEST = 12
LONGEST_STATISTICS = 2**12
_STATISTICS = {"latent_mean", "latent_std", "mel_mean", "mel_std"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
  """Sizes of every component; `None` for one that is absent.

  Attributes:
    umt5: config of the text encoder.
    fusion: config of each tower.
    video_vae: config of the video VAE.
    audio_vae: config of the audio VAE.
    vocoder: config of the vocoder.
    clip: default sizes of clips, for weights that are no released variant.
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

    Returns:
      The sizes of each component.

    Raises:
      ValueError: a key is unknown, values have other types or are beyond
        `LARGEST`, all of which are named, or a part does not make sense; the
        message names the part.
    """
    if not isinstance(sizes, Mapping):
      raise ValueError(f"architecture: expected sizes by name, got {sizes!r}")
    known = {"fusion", "latents", *(key for key, _ in _KEYS.values())}
    unknown = sorted(sizes.keys() - known)
    if unknown or not sizes.get("fusion"):
      raise ValueError(
        f"architecture needs 'fusion' and may have {sorted(known)}; unknown:"
        f" {unknown}"
      )
    if problems := _mistyped(sizes):
      raise ValueError("architecture: " + "; ".join(problems))
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

  @property
  def misfits(self) -> list[str]:
    """Components that do not fit each other, one sentence each."""
    pairs = []
    for name, tower in self.fusion.present().items():
      pairs.append((f"fusion.{name} text_dim", tower.text_dim, "umt5", "dim"))
      pairs.append((f"fusion.{name} in_dim", tower.channels, *_LATENTS[name]))
    if self.audio_vae is not None:
      bins = self.audio_vae.data_dim
      pairs.append(("audio_vae data_dim", bins, "vocoder", "mel_bins"))
    lengths = [
      f"fusion.{name} text_len is {tower.max_text_len}"
      for name, tower in self.fusion.present().items()
    ]
    alike = len({line.split()[-1] for line in lengths}) < 2
    return ([] if alike else [", but ".join(lengths)]) + [
      f"{what} is {size}, but {component} {key} is {other}"
      for what, size, component, key in pairs
      if (config := self.config(component)) is not None
      and (other := getattr(config, key)) != size
    ]

  def config(self, component: str) -> Any:
    """The sizes of a component.

    Args:
      component: one of `COMPONENTS`.

    Returns:
      Its config, such as `UMT5Config`.
    """
    return getattr(self, component)

  @property
  def components(self) -> tuple[str, ...]:
    """The components that are present."""
    return tuple(c for c in COMPONENTS if self.config(c) is not None)


def released_sizes() -> dict[str, Any]:
  """Sizes of every released variant, with the original's names."""
  return json.loads(RELEASED.read_text())


def parameter_shapes(component: str, config: Any) -> dict[str, Any]:
  """Parameter shapes of a component, see `shapes`.

  Args:
    component: one of `COMPONENTS`.
    config: its sizes.

  Returns:
    Nested dicts of `jax.ShapeDtypeStruct`, float32.
  """
  trace = functools.partial(traced_shapes, component, config)
  return shapes.lookup(component, config, trace)


def traced_shapes(component: str, config: Any) -> dict[str, Any]:
  """As `parameter_shapes`, by tracing the initializer, which takes seconds."""
  return jax.eval_shape(lambda: init(component, config, jax.random.key(0)))


def init(component: str, config: Any, key: jax.Array) -> Mapping[str, Any]:
  """Random parameters of a component.

  Args:
    component: one of `COMPONENTS`.
    config: its sizes.
    key: random key.

  Returns:
    Nested dicts of float32 arrays.
  """
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
    text[name] = jnp.zeros((1, 1, tower.text_dim))
  # On a mesh a ring divides no heads; parameters know nothing of it.
  model = fusion.FusionDiT(config, context_parallelism=context.RING)
  return model.init(key, AV(**latents), AV(**times), AV(**text))["params"]


def _mistyped(sizes: Mapping[str, Any]) -> list[str]:
  """Problems of types and sizes, with part and key."""
  problems: list[str] = []
  released = released_sizes()
  parts: dict[str, Any] = {"latents": dict.fromkeys("THWA", 1)}
  for key, config in _KEYS.values():
    # What the release leaves to the defaults may be given too.
    fields = {f.name: f.default for f in dataclasses.fields(config)}
    parts[key] = fields | released[key]
  given = {key: sizes[key] for key in parts if key in sizes}
  towers = sizes["fusion"]
  if isinstance(towers, Mapping):
    given |= {f"fusion.{name}": tower for name, tower in towers.items()}
  else:
    problems.append(f"fusion: expected towers by name, got {towers!r:.60}")
  every_tower = released["fusion"]["video"] | released["fusion"]["audio"]
  for part, values in given.items():
    if not isinstance(values, Mapping):
      problems.append(f"{part}: expected sizes by name, got {values!r:.60}")
      continue
    typical: Mapping[str, Any] = parts.get(part) or every_tower
    for key in values.keys() & typical.keys():
      if expected := _other_type(values[key], typical[key]):
        problems.append(
          f"{part}.{key}: expected {expected}, got {values[key]!r:.60}"
        )
      elif excess := _excess(part.partition(".")[0], key, values[key]):
        problems.append(f"{part}.{key}: {excess}")
  return sorted(problems)


def _excess(part: str, key: str, value: Any) -> str:
  """In what way a value is too large; empty if it is not."""
  if isinstance(value, list | tuple):
    longest = LONGEST_STATISTICS if key in _STATISTICS else LONGEST
    if len(value) > longest:
      return f"expected at most {longest} items, got {len(value)}"
    return next((e for v in value if (e := _excess(part, key, v))), "")
  # A key without a bound is none of a release and is refused by its model.
  bound = abs(LARGEST[part].get(key, float("inf")))
  if isinstance(value, bool | str) or abs(value) <= bound:
    return ""
  return f"expected at most {bound:g}, got {value!r:.60}"


def _other_type(value: Any, typical: Any) -> str:
  """The expected type of `value`; empty if it has that type.

  Args:
    value: from a file.
    typical: a value as it should be; lists may have another length.
  """
  # A bool is an int to isinstance.
  match typical:
    case bool():
      return "" if type(value) is bool else "true or false"
    case int() if typical <= 0:
      return "" if type(value) is int else "a whole number"
    case int():
      good = type(value) is int and value > 0
      return "" if good else "a whole number from 1"
    case float():
      good = type(value) in (int, float) and math.isfinite(value)
      return "" if good else "a number"
    case str():
      return "" if type(value) is str else "text"
  if not isinstance(value, list | tuple) or not value:
    return "a list that is not empty"
  wrong = (_other_type(item, typical[0]) for item in value)
  return next((f"a list, each item {w}" for w in wrong if w), "")


def _read(name: str, config: Any, sizes: Any) -> Any:
  """One part's config, with the part's name in front of any complaint."""
  if not isinstance(sizes, Mapping):
    raise ValueError(f"{name}: expected sizes by name, got {sizes!r}")
  try:
    return config.from_release(dict(sizes))
  except (TypeError, ValueError) as error:
    raise ValueError(f"{name}: {error}") from error
