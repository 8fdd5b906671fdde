"""The slowest host."""

from ovi_jax.training import host_times


def times(*host_seconds):
  return [
    host_times.HostTime(
      process=number,
      host=f"host-{number}",
      step_time=1.0,
      host_time=seconds,
      data_wait=seconds / 2,
    )
    for number, seconds in enumerate(host_seconds)
  ]


def test_a_host_that_holds_up_the_others_is_named():
  said = host_times.warning(times(0.05, 0.8, 0.04))
  assert said.startswith("slowest host: process 1 (host-1), 0.800 s of its own")
  assert "0.400 s waiting for data; the median host needs 0.050 s" in said
  assert "process 1" in host_times.warning(times(0.01, 0.8))


def test_equal_or_fast_hosts_are_not_reported():
  assert host_times.warning(times(0.8, 0.81, 0.79)) == ""
  assert host_times.warning(times(0.001, 0.09, 0.001)) == ""


def test_log_lines_have_the_times_of_each_process():
  found = host_times.scalars(times(0.1, 0.3))
  assert found["hosts/slowest"] == 1 and found["hosts/data_wait/0"] == 0.05
  assert found["hosts/step_time/1"] == 1 and len(found) == 7
