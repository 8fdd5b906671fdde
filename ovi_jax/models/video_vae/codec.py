"""Encode and decode video with the autoencoder, a step or a clip at a time.

One step turns `temporal_stride` (4) video frames into one latent frame or back,
and carries a cache. The first step of a clip holds a single video frame; it is
the same compiled step, told by `is_first`, with that frame in the last place.
Memory is that of one step, whatever the length of the clip. `encode_whole` and
`decode_whole` are the same functions of all steps at once, for training.

Pixels are float32 in [-1, 1]; latents are float32, normalised with the config's
mean and deviation per channel. `params` is a tree with the keys `encoder` and
`decoder`, of which each function needs its own only. The network's compute
dtype is `dtype`; `network` says what is float32 regardless. Patches of pixels
are channels of the network. Rows and columns are split over devices; output
frames are replicated.

Source: Wan2.2 `vae2_2.py` (`WanVAE_.encode`, `WanVAE_.decode`, `Wan2_2_VAE`,
`patchify`, `unpatchify`).
"""

import functools
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import einops
import jax
import jax.core
import jax.numpy as jnp

from ovi_jax.models import shapes
from ovi_jax.models.video_vae import config as config_lib
from ovi_jax.models.video_vae import network
from ovi_jax.sharding import logical_axes

Config = config_lib.VideoVAEConfig
Params = Mapping[str, Any]
Cache = Mapping[str, Any]


def init(config: Config, key: jax.Array) -> dict[str, Any]:
  """Random parameters, `{"encoder": ..., "decoder": ...}`, float32.

  Initial ones, for training; their shapes alone come from `jax.eval_shape`.
  """
  side = config.spatial_stride
  return {
    part: _init(config, part, 1, side, side, jnp.float32, key)["params"]
    for part in ("encoder", "decoder")
  }


def init_cache(
  config: Config,
  part: str,
  batch: int,
  height: int,
  width: int,
  dtype: Any = jnp.float32,
) -> Cache:
  """The state before the first `encode_step` or `decode_step`: zeros.

  Args:
    config: sizes.
    part: "encoder" or "decoder".
    batch: clips encoded or decoded side by side.
    height: pixels, a multiple of `spatial_stride`.
    width: pixels, a multiple of `spatial_stride`.
    dtype: compute dtype of the steps to come.

  Raises:
    ValueError: height or width is no multiple of the stride.
  """
  cache = _cache_shapes(config, part, batch, height, width, jnp.dtype(dtype))
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), cache)


def encode_step(
  config: Config,
  params: Params,
  cache: Cache,
  frames_BTHWC: jax.Array,
  is_first: jax.Array | bool,
  dtype: Any = jnp.float32,
) -> tuple[Cache, jax.Array]:
  """Encode the video frames of one latent.

  Args:
    config: sizes.
    params: tree with the key `encoder`.
    cache: from `init_cache` or the step before.
    frames_BTHWC: `temporal_stride` frames of RGB pixels, float in [-1, 1] or
      uint8.
    is_first: whether the clip begins here; only the last frame is then read.
    dtype: compute dtype.

  Returns:
    The cache for the next step, and latent_BHWC (mean, normalised, float32).
  """
  moments_BHWC, changed = network.Encoder(config, jnp.dtype(dtype)).apply(
    {"params": params["encoder"], "cache": cache},
    patchify(config, frames_BTHWC),
    is_first,
    mutable=["cache"],
  )
  latent_BHWC = moments_BHWC[..., : config.z_dim].astype(jnp.float32)
  mean, std = _statistics(config)
  return changed["cache"], (latent_BHWC - mean) / std


def decode_step(
  config: Config,
  params: Params,
  cache: Cache,
  latent_BHWC: jax.Array,
  is_first: jax.Array | bool,
  dtype: Any = jnp.float32,
) -> tuple[Cache, jax.Array]:
  """Decode one latent.

  Args:
    config: sizes.
    params: tree with the key `decoder`.
    cache: from `init_cache` or the step before.
    latent_BHWC: normalised latent.
    is_first: whether the clip begins here.
    dtype: compute dtype.

  Returns:
    The cache for the next step, and frames_BTHWC: `temporal_stride` frames of
    RGB pixels clipped to [-1, 1], float32. If `is_first`, only the last counts.
  """
  mean, std = _statistics(config)
  x_BTHWC, changed = network.Decoder(config, jnp.dtype(dtype)).apply(
    {"params": params["decoder"], "cache": cache},
    latent_BHWC.astype(jnp.float32) * std + mean,
    is_first,
    mutable=["cache"],
  )
  frames_BTHWC = unpatchify(config, x_BTHWC)
  return changed["cache"], jnp.clip(frames_BTHWC, -1.0, 1.0)


def encode_whole(
  config: Config,
  params: Params,
  frames_BTHWC: jax.Array,
  dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
  """Encode all frames of a short clip at once: fast gradients, much memory.

  Args:
    config: sizes.
    params: tree with the key `encoder`.
    frames_BTHWC: as for `encode`.
    dtype: compute dtype.

  Returns:
    mean_BTHWC and logvar_BTHWC of 1 + n latent frames, not normalised, float32.

  Raises:
    ValueError: the frames are of another number, size or type.
  """
  check_frames(config, frames_BTHWC)
  moments_BTHWC = network.Encoder(config, jnp.dtype(dtype)).apply(
    {"params": params["encoder"]}, patchify(config, frames_BTHWC), None
  )
  mean_BTHWC, logvar_BTHWC = jnp.split(
    jnp.asarray(moments_BTHWC, jnp.float32), 2, axis=-1
  )
  return mean_BTHWC, logvar_BTHWC


def decode_whole(
  config: Config,
  params: Params,
  latents_BTHWC: jax.Array,
  dtype: Any = jnp.float32,
) -> jax.Array:
  """Decode all latents of a short clip at once: fast gradients, much memory.

  Args:
    config: sizes.
    params: tree with the key `decoder`.
    latents_BTHWC: 1 + n latent frames, not normalised.
    dtype: compute dtype.

  Returns:
    frames_BTHWC: 1 + n · `temporal_stride` frames of RGB pixels, not clipped,
    float32.

  Raises:
    ValueError: the latents have another number of axes or channels.
  """
  check_latents(config, latents_BTHWC)
  x_BTHWC = network.Decoder(config, jnp.dtype(dtype)).apply(
    {"params": params["decoder"]}, latents_BTHWC.astype(jnp.float32), None
  )
  return unpatchify(config, x_BTHWC)


def encode(
  config: Config,
  params: Params,
  frames_BTHWC: Any,
  dtype: Any = jnp.float32,
  place: jax.sharding.Sharding | None = None,
) -> jax.Array:
  """Encode a clip, or an image as a clip of one frame.

  Args:
    config: sizes.
    params: tree with the key `encoder`.
    frames_BTHWC: 1 + n · `temporal_stride` frames of RGB pixels, float in
      [-1, 1] or uint8, height and width multiples of `spatial_stride`. A numpy
      array stays on the host but for the frames in work.
    dtype: compute dtype.
    place: how clips are split over the parameters' devices; None for not.

  Returns:
    latents_BTHWC, 1 + n latent frames, normalised, float32.

  Raises:
    ValueError: the frames are of another number, size or type.
  """
  batch, frames, height, width = check_frames(config, frames_BTHWC)
  stride = config.temporal_stride
  place = place or replicated_sharding(params["encoder"])
  cache = init_cache(config, "encoder", batch, height, width, dtype)
  cache = jax.device_put(cache, place)
  step = _jit_encode_step(config, jnp.dtype(dtype), place)
  before = ((0, 0), (stride - 1, 0), (0, 0), (0, 0), (0, 0))
  latents = []
  for start in range(1 - stride, frames, stride):
    chunk = jnp.asarray(frames_BTHWC[:, max(start, 0) : start + stride])
    if start < 0:
      chunk = jnp.pad(chunk, before)
    cache, latent = step(params["encoder"], cache, chunk, start < 0)
    latents.append(latent)
  return jnp.stack(latents, axis=1)


def decode_chunks(
  config: Config,
  params: Params,
  latents_BTHWC: Any,
  dtype: Any = jnp.float32,
) -> Iterator[jax.Array]:
  """Decode a clip, giving the video frames as they come.

  Args:
    config: sizes.
    params: tree with the key `decoder`.
    latents_BTHWC: normalised latents, one frame or more.
    dtype: compute dtype.

  Returns:
    Iterator of frames_BTHWC, RGB pixels clipped to [-1, 1], float32: one frame
    for the first latent, `temporal_stride` for every other.

  Raises:
    ValueError: the latents have another number of axes or channels.
  """
  check_latents(config, latents_BTHWC)
  sequence = (latents_BTHWC[:, i] for i in range(latents_BTHWC.shape[1]))
  return decode_sequence(config, params, sequence, dtype)


def decode(
  config: Config,
  params: Params,
  latents_BTHWC: Any,
  dtype: Any = jnp.float32,
) -> jax.Array:
  """Decode a clip as one array; `decode_chunks` tells the rest."""
  chunks = decode_chunks(config, params, latents_BTHWC, dtype)
  return jnp.concatenate(list(chunks), axis=1)


def decode_sequence(
  config: Config,
  params: Params,
  latents: Iterable[Any],
  dtype: Any = jnp.float32,
) -> Iterator[jax.Array]:
  """Decode latents as they come; the next is read when its frames are wanted.

  Args:
    config: sizes.
    params: tree with the key `decoder`.
    latents: normalised latents_BHWC, in order.
    dtype: compute dtype.

  Yields:
    frames_BTHWC of each, see `decode_chunks`.
  """
  side, dtype = config.spatial_stride, jnp.dtype(dtype)
  place = replicated_sharding(params["decoder"])
  cache = step = None
  for latent_BHWC in latents:
    is_first = step is None
    if step is None:
      batch, height, width, _ = latent_BHWC.shape
      size = batch, height * side, width * side
      cache = init_cache(config, "decoder", *size, dtype)
      cache = jax.device_put(cache, cache_sharding(cache, place))
      step = jit_decode_step(config, dtype, size, place)
    latent_BHWC = jnp.asarray(latent_BHWC)
    cache, chunk = step(params["decoder"], cache, latent_BHWC, is_first)
    yield chunk[:, -1:] if is_first else chunk


@functools.cache
def _jit_encode_step(config: Config, dtype: jnp.dtype, place: Any):
  """The compiled step over the encoder's parameters alone; cache donated."""

  def step(params, cache, frames_BTHWC, is_first):
    tree = {"encoder": params}
    return encode_step(config, tree, cache, frames_BTHWC, is_first, dtype)

  return jax.jit(step, donate_argnums=1, out_shardings=place)


@functools.cache
def jit_decode_step(
  config: Config, dtype: jnp.dtype, size: tuple[int, int, int], place: Any
):
  """The compiled step over the decoder's parameters alone; cache donated.

  Args:
    config: sizes.
    dtype: compute dtype.
    size: clips, rows and columns of pixels.
    place: where frames go; the cache is split over its devices.
  """

  def step(params, cache, latent_BHWC, is_first):
    tree = {"decoder": params}
    return decode_step(config, tree, cache, latent_BHWC, is_first, dtype)

  cache = _cache_shapes(config, "decoder", *size, dtype)
  return jax.jit(
    step,
    donate_argnums=1,
    out_shardings=(cache_sharding(cache, place), place),
  )


def _statistics(config: Config) -> tuple[jax.Array, jax.Array]:
  """Mean and deviation of the latent channels, each (1, 1, 1, C)."""
  mean = jnp.asarray(config.latent_mean, jnp.float32)
  std = jnp.asarray(config.latent_std, jnp.float32)
  return mean.reshape(1, 1, 1, -1), std.reshape(1, 1, 1, -1)


def _init(
  config: Config,
  part: str,
  batch: int,
  height: int,
  width: int,
  dtype: Any,
  key: jax.Array,
) -> dict[str, Any]:
  """`params` and `cache` of one half for pixels of this size."""
  is_first = jnp.asarray(True)
  if part == "encoder":
    height, width = height // config.patch, width // config.patch
    shape = (config.temporal_stride, height, width, config.patch_channels)
    module = network.Encoder(config, dtype)
  else:
    side = config.spatial_stride
    shape = (height // side, width // side, config.z_dim)
    module = network.Decoder(config, dtype)
  return dict(module.init(key, jnp.zeros((batch, *shape), dtype), is_first))


@functools.cache
def _cache_shapes(
  config: Config,
  part: str,
  batch: int,
  height: int,
  width: int,
  dtype: jnp.dtype,
) -> Cache:
  """Shapes and dtypes of one half's cache."""
  for name, side in (("height", height), ("width", width)):
    if side < 1 or side % config.spatial_stride:
      raise ValueError(
        f"{name} is {side} pixels, expected a multiple of"
        f" {config.spatial_stride}; crop or resize the frames"
      )

  def trace() -> Cache:
    key = jax.eval_shape(jax.random.key, 0)
    make = functools.partial(_init, config, part, batch, height, width, dtype)
    return jax.eval_shape(make, key)["cache"]

  given = (config, part, batch, height, width, dtype.name)
  return shapes.lookup("video_vae cache", given, trace)


def patchify(config: Config, frames_BTHWC: jax.Array) -> jax.Array:
  """Patches of pixels in [-1, 1], floating point or uint8 pixels given."""
  if frames_BTHWC.dtype == jnp.uint8:
    frames_BTHWC = frames_BTHWC.astype(jnp.float32) / 127.5 - 1
  return einops.rearrange(
    frames_BTHWC,
    "b t (h q) (w r) c -> b t h w (c r q)",
    q=config.patch,
    r=config.patch,
  )


def unpatchify(config: Config, x_BTHWC: Any) -> jax.Array:
  """Undo `patchify`, in float32."""
  frames_BTHWC = einops.rearrange(
    x_BTHWC,
    "b t h w (c r q) -> b t (h q) (w r) c",
    q=config.patch,
    r=config.patch,
  )
  return frames_BTHWC.astype(jnp.float32)


def check_frames(config: Config, frames_BTHWC: Any) -> tuple[int, ...]:
  """The sizes B, T, H, W of a clip, if it is one that can be encoded."""
  shape, stride = tuple(frames_BTHWC.shape), config.temporal_stride
  problems = []
  if len(shape) != 5 or shape[-1] != config_lib.COLOURS:
    raise ValueError(
      f"frames have shape {shape}, expected (batch, frames, height, width,"
      f" {config_lib.COLOURS})"
    )
  if shape[1] % stride != 1 % stride:
    problems.append(
      f"{shape[1]} frames, expected 1 + a multiple of {stride}; cut the clip"
    )
  side = config.spatial_stride
  if shape[2] % side or shape[3] % side:
    problems.append(
      f"{shape[2]} x {shape[3]} pixels, expected multiples of {side}; crop or"
      " resize the frames"
    )
  dtype = frames_BTHWC.dtype
  if dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
    problems.append(
      f"pixels are {dtype}, expected floating point in [-1, 1], or uint8"
    )
  if problems:
    raise ValueError("cannot encode the clip: " + "; ".join(problems))
  return shape[:4]


def check_latents(config: Config, latents_BTHWC: Any) -> None:
  """Refuse what is no clip of latents."""
  shape = tuple(latents_BTHWC.shape)
  if len(shape) != 5 or shape[-1] != config.z_dim or not shape[1]:
    raise ValueError(
      f"latents have shape {shape}, expected (batch, latent frames,"
      f" rows, columns, {config.z_dim}) with one latent frame or more"
    )


def replicated_sharding(params: Any) -> jax.sharding.Sharding | None:
  """Where results go: unsplit, to the devices of the parameters.

  Said outright, lest the first step's cache be placed unlike the others' and
  the step compiled twice. None (no matter where) for parameters on the host
  and inside another jitted function.
  """
  leaf = jax.tree.leaves(params)[0]
  if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
    return None
  if isinstance(leaf.sharding, jax.sharding.NamedSharding):
    return jax.sharding.NamedSharding(leaf.sharding.mesh, jax.P())
  return leaf.sharding


def cache_sharding(cache: Any, place: jax.sharding.Sharding | None) -> Any:
  """Where a cache's frames go, if `place` is of several devices."""

  def one(leaf: Any) -> jax.sharding.Sharding | None:
    if not isinstance(place, jax.sharding.NamedSharding):
      return place
    sizes = dict(place.mesh.shape)
    spec = logical_axes.spec(
      network.FRAME, leaf.shape, sizes, logical_axes.ACTIVATIONS
    )
    return jax.sharding.NamedSharding(place.mesh, spec)

  return jax.tree.map(one, cache)
