"""Power: known values, the table of the guide, limits."""

import pytest

from ovi_jax.study.statistics import power
from ovi_jax.study.statistics import simulate

# Prompts, raters, wins, losses (rounded to two digits) -> power.
TABLE = {
  (50, 3, 0.44, 0.36): 0.16,
  (50, 3, 0.48, 0.32): 0.43,
  (50, 3, 0.56, 0.25): 0.95,
  (100, 3, 0.44, 0.36): 0.25,
  (100, 3, 0.48, 0.32): 0.71,
  (200, 3, 0.44, 0.36): 0.45,
  (200, 3, 0.48, 0.32): 0.93,
  (100, 6, 0.44, 0.36): 0.37,
  (100, 6, 0.48, 0.32): 0.89,
  (600, 1, 0.44, 0.36): 0.51,
  (600, 1, 0.48, 0.32): 0.97,
}


def test_untied_votes_for_80_percent_power_have_known_numbers():
  found = [power.untied_votes(p) for p in (0.55, 0.60, 0.65, 0.70)]
  assert found == [783, 194, 85, 47]


def test_the_solved_raters_have_the_wanted_shares():
  difference, nu = power.solve(0.48, 0.32, 0.8)
  found = simulate.shares(difference, nu, 0.8)
  assert found.tolist() == pytest.approx([0.48, 0.32, 0.20], abs=1e-6)


def test_without_a_difference_5_percent_are_significant():
  design = power.Design(prompts=40, raters_per_item=2, win=0.4, loss=0.4)
  assert 0.03 <= power.power(design, 1000) <= 0.075


def test_more_prompts_help_more_than_more_raters():
  def of(prompts, raters):
    design = power.Design(
      prompts=prompts, raters_per_item=raters, win=0.48, loss=0.32
    )
    return power.power(design, 400)

  assert of(120, 1) > of(24, 5) + 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("design", "expected"), TABLE.items())
def test_the_power_table_is_reproduced(design, expected):
  """Within the rounding of the shares and three standard errors."""
  prompts, raters, win, loss = design
  least, most = (
    power.power(
      power.Design(
        prompts=prompts,
        raters_per_item=raters,
        win=win + change,
        loss=loss - change,
      ),
      600,
    )
    for change in (-0.005, 0.005)
  )
  assert least - 0.07 <= expected <= most + 0.07


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"prompts": 1}, "prompts: expected 2"),
    ({"raters_per_item": 0}, "raters: expected 1"),
    ({"win": 0.7, "loss": 0.3}, "leave at least 0.1 % for ties"),
    ({"win": -0.1}, "above 0"),
    ({"prompt_sd": 9.0}, "prompt_sd, rater_sd: expected 0 to 5"),
    ({"prompts": 100_000, "raters_per_item": 99}, "at most 1000000 votes"),
  ],
)
def test_impossible_designs_are_refused(change, message):
  values = {"prompts": 50, "raters_per_item": 3, "win": 0.44, "loss": 0.36}
  with pytest.raises(ValueError, match=message):
    power.Design(**values | change)
