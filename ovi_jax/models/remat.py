"""Rematerialization policies: what the backward pass of a block recomputes.

A policy is "none" (nothing is recomputed), "full" (everything is), or names of
what is saved, joined by "+", such as "attention+mlp":

  attention    outputs of attention kernels, with their log-sum-exps
  projections  queries, keys, values and outputs before norms and residuals
  mlp          hidden units of feed-forward layers, before the activation
  dots         all matrix products without batch dimensions: the last two, and
               outputs of feed-forward layers

":host" after a name, such as "attention+mlp:host", keeps it in the memory of
the host (not "dots", which has no names). "auto" is the entry of `CHIP_POLICY`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jax import ad_checkpoint

from ovi_jax.attention import blockwise
from ovi_jax.attention import cudnn

AUTO, NONE, FULL, DOTS = "auto", "none", "full", "dots"
HOST = ":host"
PROJECTIONS, MLP = "projections", "mlp"
NAMES = (blockwise.KEPT, PROJECTIONS, MLP)
CHOICES = (AUTO, NONE, FULL, *NAMES, DOTS)
# Chip -> the policy of "auto": what AOT reports say fits, with the released
# model and one clip of 5 s on a chip (docs/explanation/scaling.md). Other chips
# recompute everything.
_V5P, _V6E = "+".join(NAMES), blockwise.KEPT
CHIP_POLICY: Mapping[str, str] = {
  "TPU v5": _V5P,
  "TPU v5p": _V5P,
  "TPU v6 lite": _V6E,
  "TPU v6e": _V6E,
}

Policy = Callable[..., Any]


def named(x: jax.Array, name: str) -> jax.Array:
  """Name an array for policies, one of `NAMES`.

  Returns:
    The same array.
  """
  return ad_checkpoint.checkpoint_name(x, name)


def resolve(text: str, device_kind: str) -> str:
  """The policy of "auto" for a kind of chip; any other as it is.

  Raises:
    ValueError: the policy is unknown.
  """
  if text == AUTO:
    return CHIP_POLICY.get(device_kind, FULL)
  if text != NONE:
    policy(text)
  return text


def policy(text: str) -> Policy:
  """A policy for `jax.checkpoint`.

  Args:
    text: see the module; not "none" or "auto".

  Raises:
    ValueError: a part is unknown, or cannot be combined with the others.
  """
  parts = text.split("+")
  saved = {part for part in parts if not part.endswith(HOST)}
  offloaded = {part.removesuffix(HOST) for part in parts} - saved
  known = {FULL, DOTS, *NAMES} if len(parts) == 1 else {DOTS, *NAMES}
  wrong = sorted((saved - known) | (offloaded - set(NAMES)))
  if wrong or len(saved) + len(offloaded) < len(parts):
    raise ValueError(
      f"remat {text!r} is unknown; choose from {', '.join(CHOICES)}, or join"
      f" {', '.join((*NAMES, DOTS))} by +, each once; {', '.join(NAMES)} with"
      f" {HOST} are kept in host memory"
    )
  if saved == {FULL}:
    return jax.checkpoint_policies.nothing_saveable
  by_name = jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=sorted(saved - {DOTS}),
    names_which_can_be_offloaded=sorted(offloaded),
    offload_src="device",
    offload_dst="pinned_host",
  )
  (naming,) = jax.make_jaxpr(lambda x: named(x, MLP))(0.0).eqns

  def choose(primitive: Any, *avals: Any, **params: Any) -> Any:
    """Named arrays by their name; others if they are of a kind to save."""
    if primitive is naming.primitive:
      return by_name(primitive, *avals, **params)
    if primitive.name in cudnn.FORWARD_PRIMITIVES:
      return by_name(naming.primitive, *avals, name=blockwise.KEPT)
    if DOTS not in saved:
      return False
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return dots(primitive, *avals, **params)

  return choose


def apply(function: Any, text: str) -> Any:
  """Apply a policy to a function of a module, such as a scanned one.

  Args:
    function: the function.
    text: see the module; not "auto".

  Returns:
    The function under the policy.

  Raises:
    ValueError: the policy is unknown.
  """
  if text == NONE:
    return function
  return nn.remat(function, policy=policy(text), prevent_cse=False)
