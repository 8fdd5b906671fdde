"""What the report of a sampling step says is given, without compilation."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from configs import sample
from ovi_jax import synthetic
from ovi_jax.aot import report
from ovi_jax.aot import sample_step
from ovi_jax.aot import topology
from ovi_jax.modality import AV
from ovi_jax.sampling import conditions

FILE = pathlib.Path("a")


@pytest.fixture
def name(monkeypatch):
  """The name of the report of clips that are given something."""
  found = []
  monkeypatch.setattr(topology, "devices", lambda _: jax.devices()[:1])
  monkeypatch.setattr(
    report, "publish", lambda _, name, __: found.append(name) or True
  )

  def run(
    image: bool = False,
    mode: str | None = None,
    seconds: float | None = None,
    **given: Any,
  ) -> str:
    config = sample.get_config()
    config.conditioning = mode
    asked = conditions.Conditions(**given)
    weights, out = synthetic.WEIGHTS, pathlib.Path("out")
    assert sample_step.run(
      "v6e:2x4",
      config,
      weights,
      out,
      given=asked,
      image=image,
      seconds=seconds,
    )
    return found.pop()

  return run


def test_reports_of_other_conditions_or_modes_have_other_names(name):
  t2v = name()
  assert t2v.endswith("_v6e:2x4")
  assert name(image=True) == f"{t2v}_image"
  assert name(video=FILE) == f"{t2v}_video_renoise"
  assert name(video=FILE, mode="clean") == f"{t2v}_video_clean"
  assert name(image=True, audio=FILE) == f"{t2v}_image_audio_renoise"
  assert (
    name(video=FILE, keep_audio_until=1.0)
    == f"{t2v}_video_keep_audio_until_renoise"
  )
  assert name(audio=FILE, keep=((0, 1),)) == f"{t2v}_audio_keep_renoise"
  # Of clips of another length, and of the later windows of long ones.
  assert name(seconds=2) == f"{t2v}_13_latent_frames"
  assert name(seconds=20) == f"{t2v}_31_latent_frames_windows_renoise"
  assert name(extend=FILE, mode="clean") == f"{t2v}_extend_clean"


def test_conditions_that_leave_nothing_to_generate_are_refused(name):
  for given, message in (
    ({"keep": ((0.0, 99.0),)}, "nothing is left to generate"),
    ({"keep": ((0.1, 0.11),)}, "0.1-0.11 holds no whole latent of video"),
    ({"keep_audio_until": 0.01}, "shorter than an audio latent"),
  ):
    with pytest.raises(ValueError, match=message):
      name(video=FILE, **given)


def test_a_program_says_how_many_latents_are_given():
  masks: AV[Any] = AV(np.ones(3, bool), np.arange(9) < 4)
  assert sample_step._latents_given(masks, "renoise") == (
    ", given 3 of 3 video latents and 4 of 9 audio latents (renoise)"
  )
  assert sample_step._latents_given(AV(), "clean") == ""
