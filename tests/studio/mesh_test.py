"""Jobs over the data axis of several devices equal those of one."""

from typing import Any

import jax
import numpy as np
import pytest

from ovi_jax import synthetic
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import opening
from ovi_jax.sampling import outputs
from ovi_jax.sampling import pipeline as pipelines
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.studio import engine as engines
from ovi_jax.studio import jobs

PROMPTS = ("A red ball bounces.", "Rain.", "A blue lamp flashes.", "Snow.")


def made(folder, devices: int, batch_size: int):
  """Latents of a clip for each prompt, and the sizes of batches."""
  settings = settings_lib.Settings.from_overrides({"mesh": {"data": devices}})
  components = opening.components_of(
    synthetic.WEIGHTS,
    weights_dir.read(synthetic.WEIGHTS),
    settings,
    jax.devices()[:devices],
    "cpu",
  )
  pipeline: Any = pipelines.Pipeline(components)
  sizes: list[int] = []
  generate = pipeline.generate

  def counted(clips, *rest, **named):
    sizes.append(len(clips))
    return generate(clips, *rest, **named)

  pipeline.generate = counted
  store = jobs.JobStore(folder)
  engine = engines.Engine(pipeline, store, batch_size=batch_size)
  ids = [
    engine.submit(prompt, {"num_steps": 1, "seed": 3}, seconds=0.5).id
    for prompt in PROMPTS
  ]
  with engine:
    ended = [engine.wait(id, 600) for id in ids]
  store.close()
  assert [job.error for job in ended] == [None] * len(PROMPTS)
  found = []
  for job in ended:
    with np.load(outputs.latents_of(folder / job.clip)) as arrays:
      found.append(dict(arrays))
  return found, sizes


@pytest.mark.slow
@pytest.mark.nightly
def test_clips_over_a_data_axis_equal_those_of_one_device(tmp_path):
  alone, sizes = made(tmp_path / "1", 1, 1)
  assert sizes == [1] * 4
  for devices in (2, 8):
    found, sizes = made(tmp_path / str(devices), devices, 4)
    assert sizes == [4]
    for ours, expected in zip(found, alone):
      assert ours.keys() == expected.keys() == {"video_THWC", "audio_TC"}
      for name, array in expected.items():
        limit = 1e-5 * np.abs(array).max()
        np.testing.assert_allclose(ours[name], array, rtol=0, atol=limit)
