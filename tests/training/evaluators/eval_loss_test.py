"""The eval loss is independent of batch size and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.sharding import mesh as meshes
from ovi_jax.sharding import sharding_rules
from ovi_jax.training import param_filter
from ovi_jax.training import state_sharding
from ovi_jax.training import step
from ovi_jax.training.evaluators import eval_loss
from tests.lib import small_step
from tests.lib import standin_models

RECORDS = 6  # of step_test's; the first two have no video, the third no sound
ONE, EIGHT = (
  meshes.make(jax.devices()[:number], data=number) for number in (1, 8)
)


def records(size: int, towers=AV._fields) -> list[schema.Batch]:
  """The records, `size` at a time."""
  whole = small_step.batch(RECORDS)
  whole.lengths.video[0] = 0
  kept = [
    AV(**{name: getattr(part, name) for name in towers})
    for part in (whole.latents, whole.lengths, whole.text)
  ]
  whole = schema.Batch(*kept, ids=whole.ids)
  starts = range(0, RECORDS, size)
  return [jax.tree.map(lambda x: x[s : s + size], whole) for s in starts]  # noqa: B023


def blank(batch: schema.Batch, rows: int) -> schema.Batch:
  """The batch and rows that stand for no record."""
  return jax.tree.map(
    lambda x: np.pad(x, [(0, rows)] + [(0, 0)] * (x.ndim - 1)), batch
  )


def placed(batch: schema.Batch, mesh) -> schema.Batch:
  words = state_sharding.id_words(batch, mesh)
  return state_sharding.batch(batch, mesh)._replace(ids=words)


def judged(size: int, rows=0, mesh=ONE, towers=AV._fields, **changes):
  """What judges records in batches of `size` and some blank rows."""
  made, _ = (alone if len(towers) == 1 else small_step.step_config)()

  def batches():
    for batch in records(size, towers):
      yield placed(blank(batch, rows), mesh)

  given = {
    "model": made.objective.model,
    "mesh": mesh,
    "null_SE": small_step.NULL,
  }
  given |= {"batches": batches, "num_timestep_bins": 2}
  return eval_loss.HeldOutLoss(**given | changes)


@functools.cache
def alone():
  """The tower of sound, without the other."""
  params = param_filter.flat(standin_models.fusion_params())
  params = {
    name: x
    for name, x in params.items()
    if "video" not in name and "fusion_" not in name
  }
  model = fusion.FusionDiT(AV(None, small_step.CONFIG.audio))
  made = small_step.step_config()[0]
  made = made._replace(objective=made.objective._replace(model=model))
  return made, step.init_state(
    made, *param_filter.split(params, param_filter.ALL), seed=1
  )


@pytest.fixture(scope="module")
def twos():
  return judged(2)


@pytest.fixture(scope="module")
def losses(twos):
  return twos(small_step.step_config()[1])


def same(ours, reference, tolerance=1e-5):
  assert ours.keys() == reference.keys()
  for name, value in reference.items():
    np.testing.assert_allclose(ours[name], value, rtol=tolerance, err_msg=name)


def test_metrics_have_their_names_and_means(losses):
  assert list(losses) == [
    f"eval/loss_{name}{level}"
    for name in ("video", "audio")
    for level in ("", "_t0.00-0.50", "_t0.50-1.00")
  ]
  for name in ("video", "audio"):
    first, second = (
      losses[f"eval/loss_{name}_t{level}"]
      for level in ("0.00-0.50", "0.50-1.00")
    )
    np.testing.assert_allclose(
      losses[f"eval/loss_{name}"], (first + second) / 2, rtol=1e-12
    )
    assert abs(first - second) > 1e-3


def test_repeated_evaluation_reuses_one_program(twos, losses):
  assert twos(small_step.step_config()[1]) == losses
  assert twos._program._cache_size() == 1


def test_batch_size_and_padding_rows_do_not_matter(losses):
  same(judged(3, rows=1)(small_step.step_config()[1]), losses)


def test_eight_devices_equal_one(losses):
  made = judged(6, rows=2, mesh=EIGHT)
  same(made(small_step.step_config()[1]), losses)


def sums(judge, batch):
  """What a batch adds."""
  return judge._program(
    model=judge.model,
    levels=2,
    params=small_step.step_config()[1].params(),
    batch=placed(batch, ONE),
    null_SE=jax.device_put(small_step.NULL, sharding_rules.replicated(ONE)),
    seed=np.uint32(0),
  )


def test_a_record_that_is_left_out_does_not_change_the_noise_of_others(twos):
  both = records(2)[1]
  first, second = jax.tree.map(np.copy, (both, both))
  for kept, row in ((first, 1), (second, 0)):
    kept.ids[row] = -1
    for lengths_B in kept.lengths:
      lengths_B[row] = 0
  parts = [sums(twos, each).loss for each in (first, second)]
  for whole, *alone in zip(sums(twos, both).loss, *parts):
    np.testing.assert_allclose(sum(alone), whole, rtol=1e-5)


def test_records_that_lack_a_modality_do_not_count(twos, losses):
  """Means by hand: every record beside a row that stands for none."""
  summed, counts = [], []
  for alone in records(1):
    made = sums(twos, blank(alone, 1))
    summed.append(np.stack(made.loss))
    counts.append([int(x) for x in made.records])
  assert np.transpose(counts).tolist() == [
    [0, 0, 1, 1, 1, 1],
    [1, 1, 0, 1, 1, 1],
  ]
  video, audio = np.transpose(summed, (1, 0, 2))
  assert not video[:2].any() and not audio[2].any()
  assert (video[2:] > 0.3).all()
  for name, value, count in (("video", video, 4), ("audio", audio, 5)):
    expected = value.sum(0) / count
    found = [v for n, v in losses.items() if f"{name}_t" in n]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_noise_differs_where_it_should():
  latents = AV(np.zeros((3, 2, 2, 2, 4)), np.zeros((3, 50, 4)))

  def drawn(seed, level, ids, source=0):
    words = [[source << 8, number] for number in ids]  # 40 - 32
    given = jnp.float32(0.25), jnp.array(words, "u4"), latents
    return eval_loss._noise_sample(jnp.uint32(seed), level, *given)

  first, moved = drawn(0, 0, [0, 1, 2]), drawn(0, 0, [1, 2, 3])
  np.testing.assert_array_equal(first.noise.audio[1:], moved.noise.audio[:2])
  others = drawn(1, 0, [0, 1, 2]), drawn(0, 1, [0, 1, 2])
  for other in (moved, *others, drawn(0, 0, [0, 1, 2], source=1)):
    for ours, noise in zip(other.noise, first.noise):
      assert abs(np.corrcoef(ours[0].ravel(), noise[0].ravel())[0, 1]) < 0.5
  assert abs(first.noise.audio.std() - 1) < 0.1
  assert (first.sigma.video == 0.25).all()
  assert not first.dropped.video.any() and first.given == AV()


def test_ids_are_placed_as_two_words():
  ids_B = np.array([3 << 40 | 5, -1], np.int64)
  batch = blank(records(1)[0], 1)._replace(ids=ids_B)
  words = state_sharding.id_words(batch, ONE)
  ones = 2**32 - 1
  np.testing.assert_array_equal(words, [[3 << 8, 5], [ones, ones]])


def test_timestep_bins_are_evaluated_at_their_centers():
  asked = []

  class Spy:
    def apply(self, variables, x, t_BT, text, lengths, given_BT, references):
      jax.debug.callback(lambda t: asked.append(float(t)), t_BT.audio[0, 0])
      return jax.tree.map(jnp.zeros_like, x)

  batch = placed(records(6)[0], ONE)
  made = eval_loss.loss_sums(Spy(), 4, {}, batch, small_step.NULL, np.uint32(0))
  # Without a prediction the loss is the mean of (noise - data)², about 2.
  np.testing.assert_allclose(made.loss.video / 4, [2] * 4, atol=0.2)
  assert sorted(asked) == [125, 375, 625, 875]


def test_ema_params_are_evaluated_if_present(twos, losses):
  _, state = small_step.step_config()
  moved = {n: 1.1 * x for n, x in state.trained_params.items()}
  # With an average, the last parameters do not matter; without, they do.
  same(twos(state._replace(trained_params=moved)), losses, 0)
  other = twos(state._replace(trained_params=moved, ema_params=None))
  averaged = twos(state._replace(ema_params=moved))
  same(averaged, other, 0)
  assert abs(other["eval/loss_video"] - losses["eval/loss_video"]) > 0.003


def test_a_single_tower_is_evaluated(losses):
  found = judged(2, towers=("audio",))(alone()[1])
  assert list(found) == [n for n in losses if "audio" in n]
  assert found["eval/loss_audio"] > 0.3


def test_an_empty_split_is_refused(twos):
  with pytest.raises(
    ValueError, match="expected at least one record, got none"
  ):
    judged(2, batches=lambda: iter(()))(small_step.step_config()[1])
  with pytest.raises(ValueError, match="levels of noise must be at least 1"):
    eval_loss.HeldOutLoss(
      model=twos.model,
      mesh=ONE,
      batches=lambda: iter(()),
      null_SE=small_step.NULL,
      num_timestep_bins=0,
    )
