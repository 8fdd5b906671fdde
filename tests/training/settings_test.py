"""Settings of a run from its config, as it is now and as runs kept it."""

import pytest

from configs import fusion
from ovi_jax.attention import context
from ovi_jax.training import settings


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
