"""What the report of a training step refuses, without compilation."""

import pathlib
import types

import pytest

from configs import lora
from configs import small
from ovi_jax import synthetic
from ovi_jax.aot import train_step
from ovi_jax.commands import train
from ovi_jax.training import settings

OUT = pathlib.Path("out")


def test_8_bit_weights_are_not_assumed_of_a_base_that_is_there():
  config = lora.get_config(str(synthetic.WEIGHTS))
  config.data.sources = ("DIR",)
  found = settings.from_config(config)
  with pytest.raises(ValueError, match="is for a base without local weights"):
    train_step.run("v5e:1x1", found, OUT, quantize="int8")


def test_8_bit_weights_are_not_trained():
  config = small.get_config()
  config.data.sources = ("DIR",)
  found = settings.from_config(config)
  with pytest.raises(ValueError, match="for the base of a LoRA"):
    train_step.run("v5e:1x1", found, OUT, quantize="int8")


@pytest.mark.parametrize(("fits", "code"), [(True, 0), (False, 3)])
def test_a_step_that_does_not_fit_has_an_exit_code_of_its_own(
  fits, code, monkeypatch
):
  given = types.SimpleNamespace(
    rollback_to=None,
    flags_profile=train.flag_profiles.NONE,
    aot="v5e:1x1",
    aot_quantize="",
    config=small.get_config(),
    workdir="reports",
  )
  given.config.data.sources = ("DIR",)
  monkeypatch.setattr(train, "FLAGS", given)
  monkeypatch.setattr(train_step, "run", lambda *_: fits)
  with pytest.raises(SystemExit) as ended:
    train.main()
  assert ended.value.code == code
