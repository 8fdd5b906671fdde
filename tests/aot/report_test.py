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


def test_a_report_states_usual_utilization_and_exposed_collectives():
  text = "\n".join(
    report.Report(
      program="training step",
      device_kind="TPU v5",
      num_devices=4,
      mesh={"fsdp": 4},
      argument_size=2**30,
      temp_size=2**30,
      peak_memory=2**31,
      hbm_capacity=2**34,
      model_flops=459e12,
      compiled_flops=500e12,
      collective_bytes={"all-gather over fsdp": 4e6},
      async_bytes={"all-gather over fsdp": 3e6},
      collective_counts={"sync": 2, "async": 6},
      roofline_seconds={"compute": 1.0, "hbm": 0.5, "ici": 0.2},
      exposed_ici_seconds=0.05,
      mfu_seconds=2.5,
      compile_time=1.0,
      largest_arrays={},
    ).lines()
  )
  assert "all-gather over fsdp: 4.0 MB (75% asynchronous)" in text
  assert "2 synchronous (0.050 s exposed, at peak), 6 asynchronous" in text
  assert "seconds at 40% MFU: 2.500; no program reaches the roofline" in text


def test_reports_name_the_versions_of_their_libraries():
  assert report._versions().keys() >= {"jax", "jaxlib"}
