"""Power of a study before it begins, by simulation of its test.

A study of one pair of systems and one question is simulated with effects of
prompts and raters (`simulate`) and tested by sign flips over prompts.
"""

import dataclasses
import math

import numpy as np
from scipy import optimize
from scipy import special

from ovi_jax.study.statistics import simulate

LEVEL = 0.05
SIMULATIONS = 1000
_FLIPS = 499
_JUDGED = 40  # pairs that a rater judges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design:
  """A study of two systems.

  Attributes:
    prompts: number of prompts.
    raters_per_item: that judge each prompt.
    win: true share of wins of the better system.
    loss: true share of its losses; the rest are ties.
    prompt_sd: standard deviation of the effect of a prompt, in log strength.
    rater_sd: likewise of a rater.
    raters: number of raters; 0 for as many as judge 40 pairs each.
  """

  prompts: int
  raters_per_item: int
  win: float
  loss: float
  prompt_sd: float = 0.8
  rater_sd: float = 0.2
  raters: int = 0

  def __post_init__(self):
    problems = []
    if not 2 <= self.prompts <= 100_000:
      problems.append(f"prompts: expected 2 to 100000, got {self.prompts}")
    if not 1 <= self.raters_per_item <= 1000:
      problems.append(
        f"raters: expected 1 to 1000 for an item, got {self.raters_per_item}"
      )
    if self.prompts * self.raters_per_item > 1_000_000:
      problems.append("expected at most 1000000 votes")
    if not (
      0 < self.loss < 1 and 0 < self.win < 1 and self.win + self.loss < 0.999
    ):
      problems.append(
        "win, loss: expected shares above 0 that leave at least 0.1 % for ties,"
        f" got {self.win:g} and {self.loss:g}"
      )
    if not (0 <= self.prompt_sd <= 5 and 0 <= self.rater_sd <= 5):
      problems.append(
        "prompt_sd, rater_sd: expected 0 to 5, got"
        f" {self.prompt_sd:g} and {self.rater_sd:g}"
      )
    if problems:
      raise ValueError("; ".join(problems))


def solve(win: float, loss: float, deviation: float) -> tuple[float, float]:
  """Difference of log strengths and nu that give these shares.

  Args:
    win: share of wins.
    loss: share of losses.
    deviation: standard deviation of effects, see `simulate.shares`.

  Raises:
    ValueError: no values give them, since effects of this size alone make
      wins and losses more frequent.
  """

  def error(x: np.ndarray) -> np.ndarray:
    found = simulate.shares(x[0], math.exp(float(x[1])), deviation)
    return found[:2] - (win, loss)

  ties = 1 - win - loss
  start = [math.log(win / loss), math.log(ties / math.sqrt(win * loss))]
  found = optimize.root(error, start)
  if np.abs(error(found.x)).max() > 1e-6:
    raise ValueError(
      f"no raters have {win:g} wins and {loss:g} losses with effects of"
      f" standard deviation {deviation:g}; choose a smaller one"
    )
  return float(found.x[0]), math.exp(float(found.x[1]))


def power(
  design: Design, simulations: int = SIMULATIONS, seed: int = 0
) -> float:
  """The share of studies in which the difference is significant at 5 %.

  Args:
    design: of the study.
    simulations: number of simulated studies; the standard error of the result
      is at most 0.5 / sqrt(simulations).
    seed: of the simulation.

  Returns:
    The power, of the two-sided test without correction.
  """
  deviation = math.hypot(design.prompt_sd, design.rater_sd)
  difference, nu = solve(design.win, design.loss, deviation)
  prompts, per_item = design.prompts, design.raters_per_item
  raters = design.raters or max(
    per_item, math.ceil(prompts * per_item / _JUDGED)
  )
  random = np.random.default_rng(seed)
  signs = 1.0 - 2 * random.integers(0, 2, (prompts, _FLIPS), dtype=np.int8)
  rater = np.arange(prompts * per_item).reshape(prompts, per_item) % raters
  hits, done = 0, 0
  step = max(1, (1 << 21) // (prompts * per_item))
  while done < simulations:
    size = min(step, simulations - done)
    of_prompt = random.normal(0, design.prompt_sd, (size, prompts, 1))
    of_rater = random.normal(0, design.rater_sd, (size, raters))[:, rater]
    logit = difference + of_prompt + of_rater
    # exp(d/2) : exp(-d/2) : nu
    up, down = np.exp(logit / 2), np.exp(-logit / 2)
    drawn = random.random(logit.shape) * (up + down + nu)
    scores = ((drawn < up) * 1.0 - (drawn > up + nu)).mean(-1)
    observed = np.abs(scores.sum(1))[:, None] - 1e-9
    larger = (np.abs(scores @ signs) >= observed).sum(1)
    hits += int(((1 + larger) / (1 + _FLIPS) <= LEVEL).sum())
    done += size
  return hits / simulations


def untied_votes(share: float, power: float = 0.8) -> int:
  """Independent votes without ties that show a share other than one half.

  Args:
    share: true share of wins among votes without ties, not one half.
    power: probability of a significant result at 5 %, two-sided.

  Returns:
    The number, by the normal approximation.
  """
  level = special.ndtri(1 - LEVEL / 2) * 0.5
  reached = special.ndtri(power) * math.sqrt(share * (1 - share))
  return math.ceil(((level + reached) / (share - 0.5)) ** 2)
