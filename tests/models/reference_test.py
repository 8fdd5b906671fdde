"""References: where their latents go, what they change, and what not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.models import reference
from ovi_jax.models import rope
from ovi_jax.sharding import mesh as meshes
from tests.lib import parity
from tests.lib import standin_models

CONFIG = standin_models.fusion_config()
PARAMS = {"params": standin_models.fusion_params()}
RANDOM = np.random.default_rng(0)
LATENTS = AV(
  RANDOM.standard_normal((2, 2, 4, 4, 48), np.float32),
  RANDOM.standard_normal((2, 9, 20), np.float32),
)
VOICES = jnp.asarray(RANDOM.standard_normal((2, 5, 20), np.float32))
TEXT = jnp.asarray(RANDOM.standard_normal((2, 5, 48), np.float32))
SHOWN = jnp.ones((2, 5), bool)


def numbered(batch: int = 3) -> tuple[jax.Array, reference.Reference]:
  """Latents 0, 1, … 5 of each example, and a reference of 100, 101 and 102."""
  own = jnp.tile(jnp.arange(6.0)[None, :, None], (batch, 1, 1))
  other = jnp.tile(100 + jnp.arange(3.0)[None, :, None], (batch, 1, 1))
  return own, reference.Reference(other, jnp.ones((batch, 3), bool))


def test_a_reference_follows_the_latents_that_count():
  own, other = numbered()
  found = reference.append(own, other, jnp.array([6, 4, 0]))
  # An example without sound gets no reference.
  assert found.length_B is not None and found.given_BT is not None
  assert found.length_B.tolist() == [9, 7, 0]
  assert found.latents_BTC[0, :, 0].tolist() == [*range(6), 100, 101, 102]
  assert found.latents_BTC[1, :7, 0].tolist() == [0, 1, 2, 3, 100, 101, 102]
  assert found.given_BT[1, :7].tolist() == [False] * 4 + [True] * 3
  table = rope.table((6,), 12, 0.2, reference=3)
  for rotated, whole in zip(found.rotary(table), table):
    np.testing.assert_array_equal(rotated[1, :4], whole[:4])
    np.testing.assert_array_equal(rotated[1, 4:7], whole[6:9])
  some = other._replace(length_B=jnp.array([3, 0, 3]))
  found = reference.append(own, some, jnp.array([6, 4, 0]))
  assert found.length_B is not None and found.length_B.tolist() == [9, 4, 0]


def test_without_lengths_nothing_is_moved_and_without_reference_nothing_done():
  own, other = numbered()
  mask = jnp.zeros((3, 6), bool).at[:, 0].set(True)
  found = reference.append(own, other, given_BT=mask)
  assert found.length_B is None and found.place_BT is None
  assert found.latents_BTC.shape == (3, 9, 1) and found.given_BT is not None
  assert found.given_BT[0].tolist() == [True] + [False] * 5 + [True] * 3
  # At the time of the others.
  assert reference.append(own, other._replace(given_BR=None)).given_BT is None
  length_B = jnp.array([6, 4, 0])
  untouched = reference.append(own, None, length_B, mask)
  assert untouched.latents_BTC is own and untouched.length_B is length_B
  assert untouched.given_BT is mask and untouched.place_BT is None


def velocities(
  found: reference.Reference | None, latents=LATENTS, lengths=None
) -> AV[np.ndarray]:
  @jax.jit
  def run(latents, found, lengths):
    t_BT = jnp.full((2, 1), 500.0)
    return fusion.FusionDiT(CONFIG).apply(
      PARAMS,
      latents,
      AV(t_BT, t_BT),
      AV(TEXT, TEXT),
      lengths=lengths,
      references=AV(audio=found),
    )

  return jax.device_get(run(latents, found, lengths))


@pytest.fixture(scope="module")
def with_voice() -> AV[np.ndarray]:
  return velocities(reference.Reference(VOICES, SHOWN))


def test_a_reference_is_seen_by_both_towers_and_has_no_velocity(with_voice):
  plain = velocities(None)
  for ours, without, x in zip(with_voice, plain, LATENTS):
    assert ours.shape == x.shape
    assert parity.relative_error(ours, without) > 1e-3
  # The time at which it is shown is seen, too.
  noisy = velocities(reference.Reference(VOICES))
  assert parity.relative_error(noisy.audio, with_voice.audio) > 1e-3


def test_training_on_padded_batches_equals_sampling(with_voice):
  """Reference behind 9 of 12 latents; left out of the second example."""
  junk = 7 * np.ones((2, 3, 20), np.float32)
  padded = LATENTS._replace(audio=np.concatenate([LATENTS.audio, junk], 1))
  lengths = AV(jnp.array([2, 2]), jnp.array([9, 9]))
  some = reference.Reference(VOICES, SHOWN, jnp.array([5, 0]))
  found, plain = velocities(some, padded, lengths), velocities(None)
  for name in AV._fields:
    ours = getattr(found, name)[:, : 9 if name == "audio" else None]
    expected = getattr(with_voice, name)[0], getattr(plain, name)[1]
    for row in range(2):
      assert parity.relative_error(ours[row], expected[row]) < 5e-6


def test_references_are_the_same_on_a_mesh(with_voice):
  with jax.set_mesh(meshes.for_sampling(jax.devices(), heads=2)):
    eight = velocities(reference.Reference(VOICES, SHOWN))
  for ours, one in zip(eight, with_voice):
    assert parity.relative_error(ours, one) < 5e-6
