"""Reports of programs that exceed the memory of a device."""

import pytest

from ovi_jax.aot import report

SAID = (
  "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for"
  " HLO temporaries (15.76G) exceeds available HBM (15.75G).\nMore."
)


def refused(program: str, mesh: dict[str, int]) -> report.Report:
  shared = {
    "program": program,
    "device_kind": "TPU v5 lite",
    "num_devices": 8,
    "mesh": mesh,
    "hbm_capacity": int(15.75 * 2**30),
    "model_flops": 1e12,
  }
  sizes = {"latents/video": 3 * 2**30, "step": 4}
  return report._refused(shared, sizes, SAID, 9.0)


def test_an_out_of_memory_report_states_the_limit_and_advice():
  found = refused("training step of 8 clips in 1 microbatches", {"fsdp": 8})
  assert not found.fits and found.flops_ratio is None and found.bound_by == ""
  assert found.temp_size == int(15.76 * 2**30)
  text = "\n".join(found.lines())
  assert "does not fit: RESOURCE_EXHAUSTED" in text and "More." not in text
  assert "3.00 GiB of arguments, 15.76 GiB of temporaries, of 15.75 GiB" in text
  assert "the largest arguments of a chip:\n    3.00 GiB latents/video" in text
  assert "more devices, or more of these along context" in text
  assert "a larger grad_accum_steps" in text


@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 4}, {"data": 8}])
def test_advice_depends_on_mesh_and_program(mesh):
  text = refused("guided step of 64x64", mesh).lines()[-1]
  assert (
    "more devices along fsdp or context" in text and "grad_accum" not in text
  )
