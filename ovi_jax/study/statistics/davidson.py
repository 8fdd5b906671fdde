"""Davidson's Bradley-Terry model with ties and a side bias.

For systems i on the left and j on the right with d = theta_i - theta_j + beta,

  P(left) : P(right) : P(equal) = exp(d/2) : exp(-d/2) : nu

theta sums to 0, beta is the bias toward the left, nu the tendency to ties. This
is a log-linear model, concave in (theta, log nu, beta); Newton's method with a
weak ridge (a prior of standard deviation 10 on each parameter) finds the
maximum also where one system wins every vote or there are no ties. Parameters
have a leading axis of replicates, so a bootstrap is one call.
"""

import math
from typing import NamedTuple

import numpy as np

RIDGE = 0.01
_MAX_STEP = 2.0
_ITERATIONS = 60
_TOLERANCE = 1e-9
_CHUNK = 1 << 22  # numbers of an intermediate array


class Fit(NamedTuple):
  """Parameters by replicate.

  Attributes:
    theta_XS: log strengths, summing to 0.
    log_nu_X: tendency to ties.
    beta_X: bias toward the left.
  """

  theta_XS: np.ndarray
  log_nu_X: np.ndarray
  beta_X: np.ndarray

  @property
  def elo_XS(self) -> np.ndarray:
    """Log strengths on the Elo scale: 1000 on average, 400 for tenfold odds."""
    return 1000 + 400 * self.theta_XS / math.log(10)


def probabilities(
  difference: np.ndarray | float, log_nu: np.ndarray | float
) -> np.ndarray:
  """Probabilities of left, right and equal, [..., 3].

  Args:
    difference: of log strengths, the side bias included.
    log_nu: tendency to ties.
  """
  difference = np.asarray(difference, np.float64)
  logits = np.stack(
    [
      difference / 2,
      -difference / 2,
      np.broadcast_to(log_nu, difference.shape),
    ],
    -1,
  )
  return _softmax(logits)


def fit(counts_XEO: np.ndarray, ordered: np.ndarray, systems: int) -> Fit:
  """Fit the model to counts.

  Args:
    counts_XEO: votes by replicate, ordered pair and choice.
    ordered: [E, 2] systems on the left and on the right.
    systems: number of systems.

  Returns:
    The parameters.
  """
  design_EOP = _design(ordered, systems)
  size = design_EOP.size * design_EOP.shape[-1]
  step = max(1, _CHUNK // max(1, size))
  parts = [
    _newton(counts_XEO[start : start + step], design_EOP)
    for start in range(0, len(counts_XEO), step)
  ]
  found_XP = np.concatenate(parts)
  theta_XS = found_XP[:, :systems]
  return Fit(
    theta_XS - theta_XS.mean(1, keepdims=True),
    found_XP[:, systems],
    found_XP[:, systems + 1],
  )


def _design(ordered: np.ndarray, systems: int) -> np.ndarray:
  """Logits of each ordered pair as a linear function of the parameters."""
  design_EOP = np.zeros((len(ordered), 3, systems + 2))
  rows = np.arange(len(ordered))
  for outcome, sign in ((0, 0.5), (1, -0.5)):
    design_EOP[rows, outcome, ordered[:, 0]] += sign
    design_EOP[rows, outcome, ordered[:, 1]] -= sign
    design_EOP[rows, outcome, systems + 1] = sign
  design_EOP[:, 2, systems] = 1
  return design_EOP


def _newton(counts_XEO: np.ndarray, design_EOP: np.ndarray) -> np.ndarray:
  """The maximum of the penalized likelihood of each replicate, [X, P]."""
  size = design_EOP.shape[-1]
  total_XE1 = counts_XEO.sum(-1, keepdims=True)
  found_XP = np.zeros((len(counts_XEO), size))
  ridge_PP = RIDGE * np.eye(size)
  for _ in range(_ITERATIONS):
    logits_XEO = np.einsum("eop,xp->xeo", design_EOP, found_XP)
    expected_XEO = total_XE1 * _softmax(logits_XEO)
    residual_XEO = counts_XEO - expected_XEO
    gradient_XP = np.einsum("eop,xeo->xp", design_EOP, residual_XEO)
    gradient_XP -= RIDGE * found_XP
    # N (diag p - p p^T), in the parameters.
    mean_XEP = np.einsum("xeo,eop->xep", expected_XEO, design_EOP)
    mean_XEP /= np.sqrt(np.maximum(total_XE1, 1e-300))
    hessian_XPP = np.einsum(
      "xeo,eop,eoq->xpq", expected_XEO, design_EOP, design_EOP, optimize=True
    )
    hessian_XPP -= np.einsum("xep,xeq->xpq", mean_XEP, mean_XEP, optimize=True)
    step_XP = np.linalg.solve(hessian_XPP + ridge_PP, gradient_XP[..., None])[
      ..., 0
    ]
    longest = np.abs(step_XP).max(-1, keepdims=True)
    step_XP *= np.minimum(1, _MAX_STEP / np.maximum(longest, 1e-300))
    found_XP += step_XP
    if np.abs(step_XP).max(initial=0) < _TOLERANCE:
      break
  return found_XP


def _softmax(logits: np.ndarray) -> np.ndarray:
  odds = np.exp(logits - logits.max(-1, keepdims=True))
  return odds / odds.sum(-1, keepdims=True)
