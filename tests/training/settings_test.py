"""Settings of a run from its config, as it is now and as runs kept it."""

import pytest

from configs import codec_video
from configs import fusion
from ovi_jax.attention import context
from ovi_jax.training import settings
from ovi_jax.training.codecs import settings as codecs
from tests.sampling import settings_test


def test_a_run_of_before_a_field_can_be_read():
  config = fusion.get_config("mini")
  del config.context_parallelism
  found = settings.Settings.from_config(config)
  assert found.context_parallelism == context.ULYSSES


def test_fields_are_named():
  config = fusion.get_config("mini")
  del config.batch_size
  with pytest.raises(
    ValueError, match=r"config\.batch_size is missing; the fields"
  ):
    settings.Settings.from_config(config)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    *(("steps", True), ("seed", True), ("optimizer.learning_rate", True)),
    *(("model.video.blocks", True), ("objective.scales.video", True)),
    *(("samples.guidance.audio", True), ("cadence.log", True)),
    *(("keep.last", True), ("mesh.data", True), ("data.media", "False")),
    *(("data.workers", "8"), ("held_out.batch", True)),
  ],
)
def test_truth_values_and_texts_are_no_numbers(field, value):
  config = settings_test.plain_config(fusion.get_config("mini"), field, value)
  with pytest.raises(ValueError, match=f"config.{field} ") as error:
    settings.Settings.from_config(config)
  assert "\n" not in str(error.value)


def test_sizes_of_buckets_and_codecs_are_numbers():
  config = fusion.get_config("mini")
  config.data.audio = (True,)
  with pytest.raises(ValueError, match="config.data.audio must be a whole"):
    settings.Settings.from_config(config)
  config = codec_video.get_config("mini")
  with config.ignore_type():
    config.model.z_dim = True
  with pytest.raises(ValueError, match="config.model.z_dim must be a whole"):
    codecs.Settings.from_config(config)
