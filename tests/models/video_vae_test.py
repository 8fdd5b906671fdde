import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ovi_jax.convert import mapping
from ovi_jax.convert import standin
from ovi_jax.convert import video_vae as video_vae_names
from ovi_jax.models.video_vae import codec
from ovi_jax.models.video_vae import config as video_vae
from ovi_jax.models.video_vae import network
from ovi_jax.sharding import mesh as meshes
from tests.lib import parity

MANIFEST = pathlib.Path(__file__).parents[1] / "goldens" / "full_manifest.json"
FULL = video_vae.VideoVAEConfig()
SIZES = standin.manifest()["config"]["video_vae"]
GIB = 2**30
DTYPES = pytest.mark.parametrize(
  "dtype, kind",
  [
    (jnp.float32, "forward"),
    pytest.param(jnp.bfloat16, "bfloat16", marks=pytest.mark.slow),
  ],
)


@pytest.fixture(scope="module")
def config():
  return video_vae.VideoVAEConfig.from_release(SIZES)


@pytest.fixture(scope="module")
def params(config):
  tensors = standin.tensors(video_vae_names.FILE)
  rows = video_vae_names.rows(config)
  return mapping.nest(mapping.gather(rows, tensors.__getitem__))


@pytest.fixture(scope="module")
def frames(golden):
  return channels_last(golden("video_vae")["vvae_in"])


@pytest.fixture(scope="module")
def latents(golden):
  return channels_last(golden("fusion")["vid"])


def channels_last(array_CTHW):
  return array_CTHW.transpose(1, 2, 3, 0)[None]


@DTYPES
def test_latents_equal_the_originals(
  golden, config, params, frames, dtype, kind
):
  half = {"encoder": params["encoder"]}
  reference = golden("video_vae")
  z = codec.encode(config, half, frames, dtype)
  assert z.dtype == jnp.float32
  parity.assert_close(z, channels_last(reference["vvae_z"]), kind)
  # An image is a clip of one frame.
  z = codec.encode(config, half, frames[:, :1], dtype)
  parity.assert_close(z, channels_last(reference["vvae_z_first"]), kind)


@DTYPES
def test_frames_equal_the_originals(
  golden, config, params, latents, dtype, kind
):
  half = {"decoder": params["decoder"]}
  chunks = list(codec.decode_chunks(config, half, latents, dtype))
  assert [chunk.shape for chunk in chunks] == [
    (1, frames, 64, 96, 3) for frames in (1, 4, 4, 4)
  ]
  assert {chunk.dtype for chunk in chunks} == {jnp.dtype("float32")}
  # This golden is not clipped. Its largest value is the measure, as it was of
  # the rounding.
  reference = channels_last(golden("video_vae")["vvae_dec_vid"])
  error = np.abs(np.concatenate(chunks, 1) - np.clip(reference, -1, 1)).max()
  assert error <= parity.TOLERANCE[kind] * np.abs(reference).max()


@pytest.mark.slow
def test_streaming_equals_the_whole_clip(config, params):
  mean = np.linspace(-1, 1, config.z_dim)
  other = dataclasses.replace(
    config,
    latent_mean=tuple(mean.tolist()),
    latent_std=tuple((2 + mean).tolist()),
  )
  random = np.random.default_rng(0)
  encode = jax.jit(functools.partial(codec.encode_whole, other))
  decode = jax.jit(functools.partial(codec.decode_whole, other))
  for length in (1, 9):
    frames = random.integers(0, 256, (2, length, 32, 48, 3), np.uint8)
    found, logvar = encode(params, frames)
    z = np.asarray(codec.encode(other, params, frames))
    raw = z * np.array(other.latent_std) + mean
    np.testing.assert_allclose(found, raw, atol=1e-5)
    assert logvar.shape == z.shape and not np.allclose(logvar, found)
    z, raw = z + 2, raw + 2 * np.array(other.latent_std)
    video = decode(params, raw.astype(np.float32))
    assert np.abs(video).max() > 1  # not clipped
    streamed = codec.decode(other, params, z)
    np.testing.assert_allclose(jnp.clip(video, -1, 1), streamed, atol=1e-5)


def test_one_compiled_step_serves_clips_of_any_length(
  config, params, frames, latents
):
  encode_step = codec._jit_encode_step(config, jnp.dtype("float32"), None)
  batch, _, height, width, _ = frames.shape
  size = batch, height, width
  decode_step = codec.jit_decode_step(config, jnp.dtype("float32"), size, None)
  for step in (encode_step, decode_step):
    step.clear_cache()
  z, video = [], []
  for length in (1, 2, 4):
    clip = frames[:, : 1 + 4 * (length - 1)]
    z.append(codec.encode(config, params, clip))
    video.append(codec.decode(config, params, latents[:, :length]))
  assert encode_step._cache_size() == decode_step._cache_size() == 1
  # Neither later frames nor an earlier clip change the result.
  for shorter in (0, 1):
    np.testing.assert_array_equal(z[shorter], z[2][:, : z[shorter].shape[1]])
    seen = video[shorter].shape[1]
    np.testing.assert_array_equal(video[shorter], video[2][:, :seen])


def test_latents_are_decoded_lazily(config, params, latents):
  class Watched:
    shape, read = latents.shape, []

    def __getitem__(self, key):
      self.read.append(key[1])
      return latents[key]

  chunks = codec.decode_chunks(config, params, Watched())
  assert Watched.read == []
  next(chunks)
  assert Watched.read == [0]
  next(chunks)
  assert Watched.read == [0, 1]


@pytest.mark.parametrize(
  ("sizes", "part"),
  [
    ({"data": 2, "context": 4}, (2, 2)),
    *(
      pytest.param(axes, part, marks=pytest.mark.slow)
      for axes, part in (
        ({"data": 8}, (8, 4)),  # eight do not divide four columns
        ({"fsdp": 2, "context": 4}, (2, 4)),
        ({"fsdp": 8}, (8, 4)),
        ({"context": 8}, (1, 4)),
        ({"tensor": 8}, (8, 4)),
      )
    ),
  ],
  ids=str,
)
def test_eight_devices_equal_one(config, params, sizes, part):
  random = np.random.default_rng(0)
  latents = random.standard_normal((1, 2, 8, 4, config.z_dim), np.float32)
  mesh = meshes.make(jax.devices(), **sizes)
  place = NamedSharding(mesh, P())
  placed = jax.device_put({"decoder": params["decoder"]}, place)
  with jax.set_mesh(mesh):
    many = codec.decode(config, placed, latents)
  one = codec.decode(config, params, latents)
  assert parity.relative_error(many, one) < 1e-5
  # Each device holds its part of the state, and one program does all steps.
  side = config.spatial_stride
  size = 1, 8 * side, 4 * side
  cache = codec.init_cache(config, "decoder", *size)
  stem = codec.cache_sharding(cache, place)["stem"]["soon"]
  assert stem.shard_shape((1, 8, 4, 1))[1:3] == part
  step = codec.jit_decode_step(config, jnp.dtype("float32"), size, place)
  assert step._cache_size() == 1


def test_the_cached_convolution_equals_a_3d_convolution():
  rng = np.random.default_rng(0)
  x_BTHWC = rng.standard_normal((2, 5, 4, 6, 3)).astype(np.float32)
  conv = network.CausalConv(features=7)
  variables = conv.init(jax.random.key(0), x_BTHWC[:, 0])
  params = variables["params"] | {"bias": jnp.arange(7.0)}
  cache = jax.tree.map(jnp.zeros_like, variables["cache"])
  out = []
  for frame in range(5):
    y, changed = conv.apply(
      {"params": params, "cache": cache}, x_BTHWC[:, frame], mutable=["cache"]
    )
    out.append(y)
    cache = changed["cache"]
  expected = jax.lax.conv_general_dilated(
    x_BTHWC,
    params["kernel"],
    window_strides=(1, 1, 1),
    padding=((2, 0), (1, 1), (1, 1)),
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  ) + jnp.arange(7.0).reshape(1, 1, 1, 1, 7)
  np.testing.assert_allclose(jnp.stack(out, 1), expected, atol=1e-5)


def test_average_downsampling_inverts_duplicating_upsampling():
  x_BHWC = jnp.arange(2 * 3 * 2 * 8.0).reshape(2, 3, 2, 8)
  y_BTHWC = network.duplicate_up(x_BHWC, features=4, time=2, space=2)
  assert y_BTHWC.shape == (2, 2, 6, 4, 4)
  # Channel 2·c + t of the input is channel c of frame t, four times.
  np.testing.assert_array_equal(y_BTHWC[1, 1, 4:6, 2:4, 3], x_BHWC[1, 2, 1, 7])
  back = network.average_down(y_BTHWC, features=8, time=2, space=2)
  np.testing.assert_array_equal(back[:, 0], x_BHWC)


def test_the_full_size_has_the_released_parameters():
  shapes = jax.eval_shape(lambda key: codec.init(FULL, key), jax.random.key(0))
  assert set(shapes) == {"encoder", "decoder"}
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 704_688_668
  flat = {path: s.shape for path, s in mapping.flatten(shapes).items()}
  released = json.loads(MANIFEST.read_text())[video_vae_names.FILE]
  mapping.check(video_vae_names.rows(FULL), released, flat)
  assert FULL.spatial_stride == 16 and FULL.temporal_stride == 4


@pytest.fixture(scope="module")
def full():
  """Full-size abstract arguments of `decode_step` at 960 x 960, bfloat16."""
  shapes = jax.eval_shape(lambda key: codec.init(FULL, key), jax.random.key(0))
  return (
    jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.bfloat16), shapes),
    jax.eval_shape(
      lambda: codec.init_cache(FULL, "decoder", 1, 960, 960, jnp.bfloat16)
    ),
    jax.ShapeDtypeStruct((1, 60, 60, 48), jnp.float32),
    jax.ShapeDtypeStruct((), jnp.bool_),
  )


def test_a_step_keeps_the_shapes_of_its_cache(full):
  def step(*args):
    return codec.decode_step(FULL, *args, jnp.bfloat16)

  cache, frames = jax.eval_shape(step, *full)
  assert frames.shape == (1, 4, 960, 960, 3) and frames.dtype == jnp.float32
  assert cache == full[1]
  assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {
    jnp.dtype(jnp.bfloat16)
  }
  held = sum(leaf.size * 2 for leaf in jax.tree.leaves(cache))
  assert held < 2.7 * GIB


@pytest.mark.slow
def test_a_full_size_step_needs_less_than_six_gib(full):
  params, *rest = full
  step = codec.jit_decode_step(
    FULL, jnp.dtype(jnp.bfloat16), (1, 960, 960), None
  )
  compiled = step.lower(params["decoder"], *rest).compile()
  memory = compiled.memory_analysis()
  assert memory.temp_size_in_bytes < 6 * GIB
  # The cache is updated in place.
  held = sum(leaf.size * 2 for leaf in jax.tree.leaves(full[1]))
  assert memory.alias_size_in_bytes >= held


@pytest.mark.slow
def test_encoder_and_decoder_have_gradients():
  """Gradients reach every parameter."""
  small = video_vae.VideoVAEConfig(
    dim=2,
    dec_dim=2,
    z_dim=2,
    dim_mult=(1, 1),
    num_res_blocks=1,
    temporal_downsample=(True,),
    latent_mean=(0.0,) * 2,
    latent_std=(1.0,) * 2,
  )
  random = np.random.default_rng(0)
  frames = random.uniform(-0.5, 0.5, (1, 2, 4, 4, 3)).astype(np.float32)
  caches = [
    codec.init_cache(small, part, 1, 4, 4) for part in ("encoder", "decoder")
  ]

  def loss(params, is_first):
    _, z = codec.encode_step(small, params, caches[0], frames, is_first)
    _, back = codec.decode_step(small, params, caches[1], z, is_first)
    return jnp.square(back - frames).mean() + jnp.square(z).mean()

  params = jax.jit(codec.init, static_argnums=0)(small, jax.random.key(0))
  gradient = jax.jit(jax.grad(loss))(params, False)
  for path, g in mapping.flatten(gradient).items():
    assert np.isfinite(g).all() and np.any(g != 0), path


def test_the_codec_runs_inside_another_jitted_function():
  shapes = jax.eval_shape(lambda key: codec.init(FULL, key), jax.random.key(0))
  clip = jax.ShapeDtypeStruct((2, 9, 32, 48, 3), jnp.float32)
  z = jax.eval_shape(lambda p, x: codec.encode(FULL, p, x), shapes, clip)
  assert z.shape == (2, 3, 2, 3, 48)
  video = jax.eval_shape(lambda p, z: codec.decode(FULL, p, z), shapes, z)
  assert video.shape == clip.shape


@pytest.mark.parametrize(
  "shape, dtype, message",
  [
    ((1, 12, 64, 96, 3), "float32", r"12 frames, expected 1 \+ .* of 4"),
    ((1, 5, 64, 90, 3), "float32", "64 x 90 pixels, expected multiples of 16"),
    ((1, 5, 64, 96, 3), "int32", "pixels are int32, expected floating"),
    ((5, 64, 96, 3), "float32", r"\(5, 64, 96, 3\), expected \(batch"),
    ((1, 5, 64, 96, 4), "float32", r"\(batch, frames, height, width, 3\)"),
  ],
)
def test_clips_that_do_not_fit_are_refused(shape, dtype, message):
  with pytest.raises(ValueError, match=message):
    codec.encode(FULL, {}, np.zeros(shape, dtype))


@pytest.mark.parametrize(
  "shape", [(1, 2, 4, 6, 16), (2, 4, 6, 48), (1, 0, 4, 6, 48)]
)
def test_latents_that_do_not_fit_are_refused(shape):
  with pytest.raises(ValueError, match=r"expected \(batch, latent frames"):
    codec.decode_chunks(FULL, {}, np.zeros(shape, np.float32))


def test_caches_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="width is 90 pixels, expected a mult"):
    codec.init_cache(FULL, "encoder", 1, 64, 90)


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="video VAE: width; known are"):
    video_vae.VideoVAEConfig.from_release(SIZES | {"width": 3})
  with pytest.raises(ValueError, match="3 entries, expected 2") as error:
    video_vae.VideoVAEConfig(dim_mult=(1, 2, 4), z_dim=16, dim=0)
  assert "latent_std has 48 entries, expected z_dim = 16" in str(error.value)
  assert "dim is 0, expected 1 or more" in str(error.value)
