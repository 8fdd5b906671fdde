"""Parameter shapes: shipped ones are current, others are cached."""

import jax
import jax.numpy as jnp
import pytest

from ovi_jax import synthetic
from ovi_jax.models import architecture
from ovi_jax.models import shapes
from ovi_jax.models.video_vae import codec
from ovi_jax.pretrained import weights_dir

REMEDY = (
  "run python -m ovi_jax.models.shapes ovi_jax/synthetic/weights/ovi_jax.json"
)


def released(component: str):
  sizes = architecture.released_sizes()
  return architecture.Architecture.from_release(sizes).config(component)


def small(component: str):
  return weights_dir.manifest_of(synthetic.WEIGHTS).architecture.config(
    component
  )


@pytest.mark.parametrize("component", architecture.COMPONENTS)
@pytest.mark.parametrize(
  "config", [small, pytest.param(released, marks=pytest.mark.slow)]
)
def test_shipped_shapes_equal_traced_shapes(component, config):
  sizes = config(component)
  known = shapes._known().get(shapes.digest(component, sizes))
  traced = architecture.traced_shapes(component, sizes)
  assert known == shapes.listed(traced), REMEDY
  assert architecture.parameter_shapes(component, sizes) == traced


def test_shipped_weights_are_checked_without_tracing(monkeypatch):
  monkeypatch.setattr(architecture, "init", None)
  weights_dir.read(synthetic.WEIGHTS)
  for component in architecture.COMPONENTS:
    architecture.parameter_shapes(component, released(component))


@pytest.fixture
def calls(tmp_path):
  """An empty cache, and a function that counts how often it traced."""
  count = []

  tree = {
    "a": {
      "kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32),
      "cache": jax.ShapeDtypeStruct((), jnp.bfloat16),
    }
  }

  def trace():
    count.append(1)
    return tree

  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))

  def look():
    assert shapes.lookup("umt5", "sizes", trace) == tree
    return len(count)

  yield look
  jax.config.update("jax_compilation_cache_dir", before)


def test_other_sizes_are_traced_once(calls):
  assert [calls(), calls(), calls()] == [1, 1, 1]


def test_changed_code_is_traced_again(calls, monkeypatch):
  assert calls() == 1
  monkeypatch.setattr(shapes, "_code", lambda: "other")
  assert calls() == 2


@pytest.mark.parametrize(
  "content", ["", "[]", '{"a": ["x"]}', '{"a": 3}', '{"a": ["float32", -1]}']
)
def test_a_damaged_cache_is_traced_again(calls, tmp_path, content):
  assert calls() == 1
  (path,) = (tmp_path / shapes.FOLDER).iterdir()
  path.write_text(content)
  assert calls() == 2


def test_a_cache_that_cannot_be_written_is_no_error(calls, tmp_path):
  (tmp_path / shapes.FOLDER).write_text("a file")
  assert calls() == 1
  assert calls() == 2


def test_without_a_cache_nothing_is_written(calls, tmp_path):
  jax.config.update("jax_compilation_cache_dir", None)
  assert [calls(), calls()] == [1, 2]
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_caches_of_the_video_decoder_are_traced_once(
  tmp_path, monkeypatch, dtype
):
  config, size = small("video_vae"), (1, 64, 64)
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    codec._cache_shapes.cache_clear()
    traced = codec._cache_shapes(config, "decoder", *size, jnp.dtype(dtype))
    codec._cache_shapes.cache_clear()
    monkeypatch.setattr(codec, "_init", None)
    found = codec._cache_shapes(config, "decoder", *size, jnp.dtype(dtype))
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
    codec._cache_shapes.cache_clear()
  assert found == traced
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} >= {jnp.dtype(dtype)}
