"""Settings of a run from its config, as it is now and as runs kept it."""

import pytest

from configs import codec_video
from configs import fusion
from ovi_jax.training import settings
from ovi_jax.training.codecs import settings as codecs
from tests.lib import config_values


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
    *(
      ("num_train_steps", True),
      ("seed", True),
      ("optimizer.learning_rate", True),
    ),
    *(("model.video.num_layers", True), ("objective.loss_weights.video", True)),
    *(("eval_samples.guidance_scale.audio", True), ("log_every", True)),
    *(
      ("max_to_keep", True),
      ("mesh.data", True),
      ("data.encode_on_the_fly", "False"),
    ),
    *(("data.num_workers", "8"), ("eval.batch_size", True)),
  ],
)
def test_truth_values_and_texts_are_no_numbers(field, value):
  config = config_values.plain_config(fusion.get_config("mini"), field, value)
  with pytest.raises(ValueError, match=f"config.{field} ") as error:
    settings.Settings.from_config(config)
  assert "\n" not in str(error.value)


def test_sizes_of_buckets_and_codecs_are_numbers():
  config = fusion.get_config("mini")
  config.data.audio_buckets = (True,)
  with pytest.raises(
    ValueError, match="config.data.buckets.audio must be a whole"
  ):
    settings.Settings.from_config(config)
  config = codec_video.get_config("mini")
  with config.ignore_type():
    config.model.z_dim = True
  with pytest.raises(ValueError, match="config.model.z_dim must be a whole"):
    codecs.Settings.from_config(config)
