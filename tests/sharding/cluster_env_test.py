"""Environment variables of processes: read, or refused at once."""

import pytest

from ovi_jax.sharding import cluster_env
from ovi_jax.sharding import distributed

NAMES = (cluster_env.ADDRESS, cluster_env.COUNT, cluster_env.INDEX)


@pytest.fixture
def told(set_environment):
  """Sets the three variables, where they are not `None`, and others."""

  def tell(address=None, count=None, index=None, **others):
    three = dict(zip(NAMES, (address, count, index)))
    given = three | others
    set_environment({n: v for n, v in given.items() if v is not None})

  return tell


@pytest.mark.parametrize("connects", [True, False])
def test_the_three_variables_and_the_times_are_read(told, connects):
  told()
  alone = cluster_env.read(connects)
  assert (alone.variable, alone.count, alone.address) == ("", None, None)
  assert (alone.seconds, alone.heartbeat) == (300, 100)
  told("host0:1234", "3", "2", OVI_JAX_JOIN_SECONDS="6.5")
  found = cluster_env.read(connects)
  assert (found.index, found.count, found.seconds) == (2, 3, 6.5)
  assert found.address == "host0:1234" and found.is_override
  told("[::1]:99", "2", "0")
  assert cluster_env.read(connects).address == "[::1]:99"
  told(count="1", SLURM_NTASKS="4")
  assert cluster_env.read(connects).count == 1


LAUNCHERS = {
  "Open MPI": (
    {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"},
    (3, 4),
  ),
  "MPICH within a Slurm job": (
    {"PMI_SIZE": "2", "PMI_RANK": "1", "SLURM_NTASKS": "8"},
    (1, 2),
  ),
  "srun": (
    {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"},
    (1, 4),
  ),
  "torchrun": ({"WORLD_SIZE": "2", "RANK": "1"}, (1, 2)),
  "TPU hosts": (
    {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"},
    (1, 2),
  ),
  "TPU processes": (
    {"TPU_PROCESS_ADDRESSES": "a:1,a:2,b:1", "TPU_WORKER_ID": "2"},
    (2, 3),
  ),
  "several slices": (
    {
      "TPU_WORKER_HOSTNAMES": "a,b",
      "TPU_WORKER_ID": "1",
      "MEGASCALE_NUM_SLICES": "3",
      "MEGASCALE_SLICE_ID": "2",
    },
    (5, 6),
  ),
  "one TPU host in Kubernetes": (
    {"TPU_WORKER_HOSTNAMES": "localhost", "JOB_COMPLETION_INDEX": "0"},
    (0, 1),
  ),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_processes_that_do_not_connect_divide_work_by_the_launcher(name, told):
  variables, place = LAUNCHERS[name]
  told(**variables)
  assert distributed.process_info() == place


def test_dividing_work_needs_no_coordinator(told):
  told(None, "2", "1")
  assert distributed.process_info() == (1, 2)
  with pytest.raises(ValueError, match="JAX_COORDINATOR_ADDRESS is not set"):
    distributed.initialize()


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("SLURM_NTASKS", "4"),  # a job's script outside of srun
    ("SLURM_STEP_NUM_TASKS", "4"),
    ("JOB_COMPLETION_INDEX", "0"),
    ("TPU_WORKER_HOSTNAMES", "a,b"),
  ],
)
def test_work_is_not_divided_without_an_index_and_a_number(name, value, told):
  told(**{name: value})
  with pytest.raises(
    ValueError, match=rf"\({name}\), found 1; .*ESSES=1 start"
  ):
    distributed.process_info()


BAD = {
  ("a:1", "2", None): "PROCESS_ID is not set, but .*ADDRESS and .*_PROCESSES",
  ("a:1", None, None): "NUM_PROCESSES is not set, but JAX_COORDINATOR_ADDRESS",
  (None, None, "1"): "NUM_PROCESSES is not set",
  (None, "2", None): "PROCESS_ID is not set, but JAX_NUM_PROCESSES is",
  ("a", "2", "1"): "ADDRESS is 'a', expected a host and a port",
  (":1", "2", "1"): "ADDRESS is ':1', expected a host and a port",
  ("a:x", "2", "1"): "ADDRESS is 'a:x', expected a host and a port",
  ("a:0", "2", "1"): "expected a host and a port from 1 to 65535",
  ("a:65536", "2", "1"): "expected a host and a port from 1 to 65535",
  ("a:1", "2", "2"): "is 2, expected 0 to 1: JAX_NUM_PROCESSES says 2",
  ("a:1", "two", "1"): "'two', expected a whole number from 1 on",
  ("a:1", "0", "0"): "'0', expected a whole number from 1 on",
  ("a:1", "2", "-1"): "'-1', expected a whole number from 0 on",
  ("a:1", "9" * 5000, "1"): "expected a whole number from 1 on",
}


@pytest.mark.parametrize("given", BAD)
def test_invalid_and_incomplete_variables_are_refused(told, given):
  told(*given)
  for ask in (distributed.initialize, distributed.process_info):
    with pytest.raises(ValueError, match=f"(?s){BAD[given]}.*none of them"):
      ask()


@pytest.mark.parametrize("value", ["soon", "0", "-3", "inf", "nan"])
@pytest.mark.parametrize("name", [cluster_env.TIMEOUT, cluster_env.HEARTBEAT])
def test_invalid_times_are_refused(told, name, value):
  told("a:1", "2", "1", **{name: value})
  with pytest.raises(ValueError, match=f"{name} is '{value}', expected sec"):
    distributed.initialize()


def test_an_index_beyond_a_launchers_number_is_refused(told):
  told(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="2")
  with pytest.raises(ValueError, match="is 2, expected 0 to 1: OMPI_COMM_WO"):
    distributed.process_info()


def test_all_problems_are_listed_at_once(told):
  told("a", "two", "x", OVI_JAX_JOIN_SECONDS="soon")
  with pytest.raises(ValueError) as error:
    cluster_env.read(needs_coordinator=True)
  assert all(word in str(error.value) for word in ("'a'", "two", "'x'", "soon"))
