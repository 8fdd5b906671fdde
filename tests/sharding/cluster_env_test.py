"""Process settings from the environment."""

import pytest

from ovi_jax.sharding import cluster_env
from ovi_jax.sharding import distributed

NAMES = (
  cluster_env.ADDRESS,
  cluster_env.COUNT,
  cluster_env.INDEX,
  cluster_env.BIND,
  cluster_env.TIMEOUT,
  cluster_env.HEARTBEAT,
  "SLURM_PROCID",
  "SLURM_STEP_NUM_TASKS",
  "OMPI_COMM_WORLD_RANK",
  "OMPI_COMM_WORLD_SIZE",
  "TPU_WORKER_ID",
  "TPU_WORKER_HOSTNAMES",
)


@pytest.fixture
def told(monkeypatch):
  """Sets the three variables, where they are not `None`, and others."""

  def tell(address=None, count=None, index=None, **others):
    for name in NAMES:
      monkeypatch.delenv(name, raising=False)
    three = dict(zip(NAMES, (address, count, index)))
    for name, value in (three | others).items():
      if value is not None:
        monkeypatch.setenv(name, value)

  return tell


@pytest.mark.parametrize("meets", [True, False])
def test_process_settings_are_read_from_the_environment(told, meets):
  told()
  alone = cluster_env.read(meets)
  assert (alone.index, alone.count, alone.address) == (0, 1, None)
  assert (alone.seconds, alone.heartbeat) == (300, 100)
  told("host0:1234", "3", "2", OVI_JAX_JOIN_SECONDS="6.5")
  found = cluster_env.read(meets)
  assert (found.index, found.count, found.seconds) == (2, 3, 6.5)
  assert found.address == ("host0", 1234) and found.bind == ("", 1234)
  told("[::1]:99", "2", "0", JAX_COORDINATOR_BIND_ADDRESS="[::]:98")
  found = cluster_env.read(meets)
  assert found.address == ("::1", 99) and found.bind == ("::", 98)
  told(SLURM_PROCID="1", SLURM_STEP_NUM_TASKS="4")
  found = cluster_env.read(meets)
  assert (found.index, found.count, found.address) == (1, 4, None)
  told(TPU_WORKER_ID="1", TPU_WORKER_HOSTNAMES="a,b")
  found = cluster_env.read(meets)
  assert (found.index, found.count) == (1, 2)
  told(count="1")
  assert cluster_env.read(meets).count == 1


def test_process_info_needs_no_coordinator(told):
  told(None, "2", "1")
  assert distributed.process_info() == (1, 2)
  with pytest.raises(ValueError, match="JAX_COORDINATOR_ADDRESS is not set"):
    distributed.initialize()


BAD = {
  ("a:1", "2", None): "PROCESS_ID is not set, but .*ADDRESS and .*_PROCESSES",
  ("a:1", None, None): "NUM_PROCESSES is not set, but JAX_COORDINATOR_ADDRESS",
  (None, None, "1"): "NUM_PROCESSES is not set",
  (None, "2", None): "PROCESS_ID is not set, but JAX_NUM_PROCESSES is",
  ("a", "2", "1"): "ADDRESS is 'a', expected a host and a port, such as",
  (":1", "2", "1"): "ADDRESS is ':1', expected a host and a port",
  ("a:x", "2", "1"): "ADDRESS is 'a:x', expected a host and a port",
  ("a:0", "2", "1"): "expected a port from 1 to 65535",
  ("a:65536", "2", "1"): "expected a port from 1 to 65535",
  ("a:1", "2", "2"): "PROCESS_ID is 2, expected 0 to 1: .* says 2",
  ("a:1", "two", "1"): "'two', expected a whole number from 1 on",
  ("a:1", "0", "0"): "'0', expected a whole number from 1 on",
  ("a:1", "2", "-1"): "'-1', expected a whole number from 0 on",
}


@pytest.mark.parametrize("given", BAD)
def test_invalid_settings_are_refused(told, given):
  told(*given)
  for ask in (distributed.initialize, distributed.process_info):
    with pytest.raises(ValueError, match=f"(?s){BAD[given]}.*none of them"):
      ask()


@pytest.mark.parametrize("value", ["soon", "0", "-3", "inf", "nan"])
@pytest.mark.parametrize("name", [cluster_env.TIMEOUT, cluster_env.HEARTBEAT])
def test_invalid_timeouts_are_refused(told, name, value):
  told("a:1", "2", "1", **{name: value})
  with pytest.raises(ValueError, match=f"{name} is '{value}', expected sec"):
    distributed.initialize()


def test_incomplete_variables_of_slurm_and_mpi_are_refused(told):
  told(SLURM_STEP_NUM_TASKS="2")
  with pytest.raises(ValueError, match="SLURM_PROCID is not set, but SLURM"):
    distributed.process_info()
  told(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="2")
  with pytest.raises(ValueError, match="RANK is 2, expected 0 to 1"):
    distributed.process_info()


def test_all_problems_are_listed_at_once(told):
  told("a", "two", "x", OVI_JAX_JOIN_SECONDS="soon")
  with pytest.raises(ValueError) as error:
    cluster_env.read(meets=True)
  assert all(word in str(error.value) for word in ("'a'", "two", "'x'", "soon"))
