"""Which steps are bad."""

import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.training import bad_steps

INF, NAN = float("inf"), float("nan")
LATE = bad_steps.SkipState(
  skipped=jnp.int32(0),
  accepted=jnp.int32(bad_steps.MIN_ACCEPTED),
  loss=jnp.float32(1.0),
  grad_norm=jnp.float32(2.0),
)


@pytest.mark.parametrize(
  ("loss", "grad_norm", "factor", "expected"),
  [
    (1.0, 2.0, 3.0, False),
    (NAN, 2.0, 0.0, True),
    (1.0, INF, 0.0, True),
    (3.1, 2.0, 3.0, True),
    (1.0, 6.1, 3.0, True),
    (3.1, 6.1, 0.0, False),
  ],
)
def test_non_finite_values_and_spikes_are_bad(
  loss, grad_norm, factor, expected
):
  is_bad, state = bad_steps.detect(
    LATE, jnp.float32(loss), jnp.float32(grad_norm), factor
  )
  assert bool(is_bad) == expected
  assert int(state.skipped) == expected
  assert int(state.accepted) == bad_steps.MIN_ACCEPTED + (not expected)
  if expected:
    assert (state.loss, state.grad_norm) == (LATE.loss, LATE.grad_norm)


def test_first_steps_are_no_spikes_and_are_averaged_equally():
  state = bad_steps.initial_state()
  for loss in (1.0, 100.0, 4.0):
    is_bad, state = bad_steps.detect(
      state, jnp.float32(loss), jnp.float32(1), 2.0
    )
    assert not is_bad
  np.testing.assert_allclose(state.loss, 35.0, rtol=1e-6)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"skip_bad_steps": -1}, "skip_bad_steps must be 0 or more"),
    ({"skip_bad_steps": 1, "skip_loss_spikes": 0.5}, "a factor above 1"),
    ({"skip_loss_spikes": 4.0}, "needs skip_bad_steps"),
  ],
)
def test_invalid_policies_are_refused(given, message):
  with pytest.raises(ValueError, match=message):
    bad_steps.BadStepPolicy(**given)
