"""Simulated raters: votes of Davidson's model with effects of prompts, raters.

The log strength of a system is its own, plus a normal effect for each prompt
and one for each rater. `prompt_sd` and `rater_sd` are the standard deviations
of the difference of two systems.
"""

import dataclasses
import math

import numpy as np

from ovi_jax.study.statistics import davidson
from ovi_jax.study.statistics import votes as votes_lib

_NODES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Raters:
  """How raters judge.

  Attributes:
    theta: log strength of each system.
    nu: tendency to ties.
    beta: bias toward the left.
    prompt_sd: of the effect of a prompt on a difference of systems.
    rater_sd: likewise of a rater.
  """

  theta: tuple[float, ...]
  nu: float = 0.5
  beta: float = 0.0
  prompt_sd: float = 0.8
  rater_sd: float = 0.2


def study(
  model: Raters,
  prompts: int,
  raters_per_item: int,
  raters: int,
  random: np.random.Generator,
) -> votes_lib.Votes:
  """Votes on every pair of systems for every prompt.

  Args:
    model: of the raters.
    prompts: number of prompts.
    raters_per_item: that judge each pair of a prompt.
    raters: number of raters; items are dealt to them in turn.
    random: source of randomness.

  Returns:
    The votes; sides are balanced within an item, up to one vote.
  """
  theta = np.array(model.theta)
  systems = len(theta)
  first, second = np.triu_indices(systems, 1)
  count = prompts * len(first) * raters_per_item
  number = np.arange(count)
  prompt = number // (len(first) * raters_per_item)
  pair = number // raters_per_item % len(first)
  # In turn, beginning anew in a random order for each round of all raters.
  rounds = -(-count // raters)
  order = np.concatenate([random.permutation(raters) for _ in range(rounds)])
  rater = order[:count]
  flipped = (number + pair + prompt) % 2 == 1
  left = np.where(flipped, second[pair], first[pair])
  right = np.where(flipped, first[pair], second[pair])
  of_prompt = random.normal(
    0, model.prompt_sd / math.sqrt(2), (prompts, systems)
  )
  of_rater = random.normal(0, model.rater_sd / math.sqrt(2), (raters, systems))
  strength = theta + of_prompt[prompt] + of_rater[rater]
  difference = strength[number, left] - strength[number, right] + model.beta
  chances = davidson.probabilities(difference, math.log(model.nu))
  drawn = random.random(count)[:, None] > np.cumsum(chances, -1)[:, :2]
  return votes_lib.Votes(
    systems=tuple(f"system {i}" for i in range(systems)),
    prompt=prompt,
    rater=rater,
    left=left,
    right=right,
    choice=drawn.sum(1),
  )


def shares(
  difference: np.ndarray | float, nu: float, deviation: float
) -> np.ndarray:
  """Shares of wins, losses and ties over prompts and raters, [..., 3].

  Args:
    difference: of log strengths.
    nu: tendency to ties.
    deviation: standard deviation of the effects of prompts and raters together.
  """
  nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
  difference = np.asarray(difference, np.float64)[..., None]
  chances = davidson.probabilities(difference + deviation * nodes, math.log(nu))
  return np.einsum("...no,n->...o", chances, weights / weights.sum())


def expected_counts(model: Raters) -> tuple[np.ndarray, np.ndarray]:
  """counts_1EO that a large study would have, and its ordered pairs."""
  systems = len(model.theta)
  ordered = np.array(
    [(i, j) for i in range(systems) for j in range(systems) if i != j]
  )
  theta = np.array(model.theta)
  difference = theta[ordered[:, 0]] - theta[ordered[:, 1]] + model.beta
  deviation = math.hypot(model.prompt_sd, model.rater_sd)
  return 1e6 * shares(difference, model.nu, deviation)[None], ordered
