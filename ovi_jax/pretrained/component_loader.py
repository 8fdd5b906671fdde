"""Loads the text encoder, VAEs and vocoder from a directory of weights.

Text encoder and denoiser are sharded over the mesh by
`sharding.sharding_rules`; VAEs and vocoder are replicated. The text encoder and
the video VAE compute in the given dtype, the audio VAE and the vocoder in
float32 (they are a thousandth of the work).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import storage
from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.models import architecture
from ovi_jax.pretrained import weights
from ovi_jax.pretrained import weights_dir
from ovi_jax.sharding import sharding_rules

_RULES = {"fusion": sharding_rules.FUSION, "umt5": sharding_rules.UMT5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Components:
  """A directory of weights, with the mesh and dtype to compute in.

  Attributes:
    weights: directory of converted weights.
    manifest: its manifest.
    mesh: the devices.
    dtype: compute dtype.
  """

  weights: storage.AnyPath
  manifest: weights_dir.Manifest
  mesh: jax.sharding.Mesh
  dtype: jnp.dtype

  @functools.cached_property
  def arch(self) -> architecture.Architecture:
    return self.manifest.architecture

  @contextlib.contextmanager
  def computing(self, dtype: Any = None) -> Iterator[None]:
    """Set the mesh, and matmul precision "highest" for float32.

    Args:
      dtype: compute dtype; by default that of the components.
    """
    whole = (self.dtype if dtype is None else dtype) == jnp.float32
    precision = "highest" if whole else None
    with jax.set_mesh(self.mesh), jax.default_matmul_precision(precision):
      yield

  @property
  def text_length(self) -> int:
    """Tokens of a prompt, the same for every tower."""
    return next(iter(self.arch.fusion.present().values())).max_text_len

  def load(
    self,
    component: str,
    prefix: str | tuple[str, ...] | None = None,
    dtype: Any = None,
  ) -> dict[str, Any]:
    """Load a component's parameters onto the mesh.

    Args:
      component: one of `architecture.COMPONENTS`.
      prefix: load only leaves under this path, or these paths.
      dtype: of the parameters; by default the compute dtype.

    Returns:
      Nested dicts of arrays.

    Raises:
      ValueError: the file is missing or damaged.
    """
    path = weights_dir.component_file(self.weights, component)
    placement: Any = sharding_rules.replicated(self.mesh)
    if component in _RULES:
      shapes = weights.shapes(path)
      placed = sharding_rules.param_shardings(
        shapes, _RULES[component], self.mesh
      )
      placement = lambda leaf, shape: placed[leaf]  # noqa: E731
    return weights.load(
      path,
      shardings=placement,
      dtype=self.dtype if dtype is None else dtype,
      prefix=prefix,
    )

  def require_finite(self, values: np.ndarray, *components: str) -> np.ndarray:
    """Check the output of components.

    Args:
      values: the output.
      *components: that computed it, for the message.

    Returns:
      The same values.

    Raises:
      ValueError: a value is NaN or infinite; names the components' files.
    """
    if not np.isfinite(values).all():
      raise ValueError(self.damaged(*components))
    return values

  def damaged(self, *components: str) -> str:
    """The error message for output that is not finite."""
    names = [weights_dir.component_file(self.weights, c) for c in components]
    return (
      f"{' or '.join(map(str, names))}: output is not finite (NaN or infinity)"
      " though the input is: the weights are damaged; convert the release again"
    )

  def tokenizer(self) -> tokenizer_lib.Tokenizer:
    """Load the tokenizer of the text encoder."""
    path = self.weights / weights_dir.TOKENIZER
    return tokenizer_lib.Tokenizer.load(path, self.arch.umt5.vocab_size)
