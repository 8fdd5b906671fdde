"""Detection of clusters in faked environments; what processes must share.

No other process is started, except for the last tests.
"""

import http.server
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import types
import warnings

import jax
import pytest
from jax._src import distributed as jax_distributed
from jax._src import xla_bridge
from jax._src.clusters import cloud_tpu_cluster
from jax._src.clusters import cluster as jax_cluster
from jax._src.clusters import k8s_cluster

from ovi_jax.sharding import distributed

ROOT = pathlib.Path(__file__).resolve().parents[2]

SLURM = {
  "SLURM_JOB_ID": "4097",
  "SLURM_STEP_NODELIST": "node[07-08]",
  "SLURM_NTASKS": "4",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_PROCID": "2",
  "SLURM_LOCALID": "0",
}
OPEN_MPI_5 = {
  "OMPI_COMM_WORLD_SIZE": "2",
  "OMPI_COMM_WORLD_RANK": "1",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
OPEN_MPI_4 = OPEN_MPI_5 | {
  "OMPI_MCA_orte_hnp_uri": "8192.0;tcp://10.96.0.1,10.148.0.1:34911"
}
GKE = {
  "KUBERNETES_SERVICE_HOST": "10.0.0.1",
  "JOB_COMPLETION_INDEX": "1",
  "TPU_WORKER_HOSTNAMES": ",".join(f"host{n}" for n in range(16)),
  "TPU_WORKER_ID": "3",
}
SLICES = {
  "MEGASCALE_NUM_SLICES": "2",
  "MEGASCALE_SLICE_ID": "1",
  "MEGASCALE_COORDINATOR_ADDRESS": "slice0-host0:8080",
}
INDEXED_JOB = {
  "KUBERNETES_SERVICE_HOST": "10.0.0.1",
  "HOSTNAME": "train-1",
  "JOB_COMPLETION_INDEX": "1",
}
ENDPOINTS = "a:b:10.0.0.7,a:b:10.0.0.8,a:b:10.0.0.9"
OURS = {
  "JAX_COORDINATOR_ADDRESS": "host0:1234",
  "JAX_NUM_PROCESSES": "3",
  "JAX_PROCESS_ID": "2",
}
# Name -> what is there besides variables, variables; number of processes, index
# and coordinator.
DETECTED = {
  "one machine": ((), {}, (1, 0, None)),
  "TPU VM, one host": (
    ("tpu",),
    {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    (1, 0, None),
  ),
  "TPU machine without metadata server": (
    ("tpu",),
    {"TPU_SKIP_MDS_QUERY": "1"},
    (1, 0, None),
  ),
  "TPU VM pod": (
    ("tpu", "metadata"),
    {},
    (3, 1, "10.0.0.7:8482"),
  ),
  "TPU VM pod, two slices": (
    ("tpu", "metadata", "slices"),
    {},
    (6, 4, "slice0-host0:8482"),
  ),
  "GKE TPU": (("tpu",), GKE, (16, 3, "host0:8482")),
  "GKE TPU, two slices": (
    ("tpu",),
    GKE | SLICES,
    (32, 19, "slice0-host0:8482"),
  ),
  "several processes a TPU host": (
    ("tpu",),
    {"TPU_PROCESS_ADDRESSES": "h0:1,h0:2,h1:1", "TPU_WORKER_ID": "2"},
    (3, 2, "h0:8482"),
  ),
  "Kubernetes Job": (
    ("kubernetes",),
    INDEXED_JOB,
    (4, 1, "train-0.pods:55527"),
  ),
  "Kubernetes JobSet": (
    ("kubernetes", "jobset"),
    INDEXED_JOB,
    (4, 1, "train-0.set:55527"),
  ),
  "srun": ((), SLURM, (4, 2, "node07:61441")),
  "srun, another port": (
    (),
    SLURM | {"JAX_COORDINATOR_PORT": "99"},
    (4, 2, "node07:99"),
  ),
  "srun of one task": ((), {"SLURM_NTASKS": "1"}, (1, 0, None)),
  "Open MPI 4": ((), OPEN_MPI_4, (2, 1, "10.96.0.1:61442")),
  "three variables": ((), OURS, (3, 2, "host0:1234")),
  "three variables under srun": ((), SLURM | OURS, (3, 2, "host0:1234")),
  "three variables on a TPU": (("tpu",), GKE | OURS, (3, 2, "host0:1234")),
  "one process alone on a TPU": (
    ("tpu",),
    GKE | {"JAX_NUM_PROCESSES": "1"},
    (1, 0, None),
  ),
}
# Name -> the same; the variable that is named, how many processes it tells of
# and how many are found.
REFUSED = {
  "a Slurm job without srun": (
    (),
    {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
    ("SLURM_NTASKS", "4", 1),
  ),
  "Open MPI 5": (
    (),
    OPEN_MPI_5,
    ("OMPI_COMM_WORLD_SIZE", "2", 1),
  ),
  "MPICH": (
    (),
    {"PMI_SIZE": "2", "PMI_RANK": "0"},
    ("PMI_SIZE", "2", 1),
  ),
  "torchrun": (
    (),
    {"WORLD_SIZE": "8", "RANK": "0"},
    ("WORLD_SIZE", "8", 1),
  ),
  "Kubernetes without its package": (
    ("no kubernetes",),
    INDEXED_JOB | {"JOB_COMPLETION_INDEX": "0"},
    ("JOB_COMPLETION_INDEX", "several", 1),
  ),
  "TPU hosts without TPU": (
    (),
    {"TPU_WORKER_HOSTNAMES": "host0,host1", "TPU_WORKER_ID": "0"},
    ("TPU_WORKER_HOSTNAMES", "2", 1),
  ),
  "slices without TPU": (
    (),
    {"MEGASCALE_NUM_SLICES": "2"},
    ("MEGASCALE_NUM_SLICES", "2", 1),
  ),
  "TPU hosts, on their CPUs": (
    ("tpu", "cpu"),
    GKE | SLICES,
    ("TPU_WORKER_HOSTNAMES and MEGASCALE_NUM_SLICES", "32", 1),
  ),
  "slices of which JAX knows one": (
    ("tpu", "metadata"),
    {"PMI_SIZE": "6", "PMI_RANK": "0"},
    ("PMI_SIZE", "6", 3),
  ),
}


@pytest.fixture
def metadata_server(monkeypatch):
  """A server of a TPU VM's attributes, at `GCE_METADATA_IP`."""
  attributes = {
    "agent-worker-number": "1",
    "worker-network-endpoints": ENDPOINTS,
    "tpu-env": "ZONE: 'here'",
  }

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      name = self.path.rpartition("/")[2]
      assert self.headers["Metadata-Flavor"] == "Google"
      self.send_response(200)
      self.end_headers()
      self.wfile.write(attributes[name].encode())

    def log_message(self, *_):
      pass

  with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield attributes, f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def fake_kubernetes(is_jobset):
  """The package `kubernetes`, which knows of one Job of four pods."""
  labels = {"jobset.sigs.k8s.io/jobset-name": "set"} if is_jobset else {}
  space = types.SimpleNamespace
  pod = space(
    metadata=space(
      name="train-1",
      labels={"job-name": "train"},
      owner_references=[space(controller=True, kind="Job")],
    ),
    spec=space(subdomain="pods"),
  )
  job = space(
    metadata=space(name="train", labels=labels), spec=space(parallelism=4)
  )
  core = space(list_namespaced_pod=lambda **_: space(items=[pod]))
  batch = space(read_namespaced_job=lambda **_: job)
  module = types.ModuleType("kubernetes")
  vars(module).update(
    config=space(load_incluster_config=lambda: None),
    client=space(
      CoreV1Api=lambda: core,
      BatchV1Api=lambda: batch,
      exceptions=space(ApiException=OSError),
    ),
  )
  return module


class UnsetOptions:
  """JAX's config, none of whose options are set or can be set."""

  def __getattr__(self, name):
    del name
    return types.SimpleNamespace(value=None)

  def update(self, name, value):
    del name, value


@pytest.fixture
def connect(set_environment, metadata_server, monkeypatch, log_lines):
  """Initialize in a faked environment; what JAX's service is asked for.

  JAX's own cluster detection runs; only its connection is replaced. `log_lines`
  restores the level of the logger.
  """
  platforms = jax.config.jax_platforms

  def call(present, variables):
    set_environment({"TPU_SKIP_MDS_QUERY": "1"} | variables)
    attributes, address = metadata_server
    monkeypatch.setenv("GCE_METADATA_IP", address)
    state = jax_distributed.State()
    monkeypatch.setattr(jax_distributed, "global_state", state)
    monkeypatch.setattr(state, "initialize_preemption_sync_manager", list)
    client = types.SimpleNamespace(connect=list, shutdown=list)
    runtime = types.SimpleNamespace(
      get_distributed_runtime_client=lambda *_, **__: client,
      get_distributed_runtime_service=lambda *_, **__: client,
    )
    monkeypatch.setattr(jax_distributed, "_jax", runtime)
    monkeypatch.setattr(jax_distributed, "config", UnsetOptions())
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)
    monkeypatch.setattr(jax, "process_count", lambda: state.num_processes)
    monkeypatch.setattr(jax, "process_index", lambda: state.process_id)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.1")
    if "tpu" in present:
      for module in (cloud_tpu_cluster, jax_cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
      monkeypatch.setattr(distributed.cli, "has_tpu", lambda: True)
    if "metadata" in present:
      monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
      if "slices" in present:
        attributes["tpu-env"] = "\n".join(
          f"{name}: '{value}'" for name, value in SLICES.items()
        )
    pods = "jobset" in present
    kubernetes = fake_kubernetes(pods) if "kubernetes" in present else None
    monkeypatch.setitem(sys.modules, "kubernetes", kubernetes)
    detection = k8s_cluster.K8sCluster
    monkeypatch.setattr(detection, "_namespace", lambda: "default")
    for name in ("_pod", "_job", "_controller"):
      # Cached for the whole process.
      plain = getattr(detection, name).__func__.__wrapped__
      plain = getattr(plain, "__wrapped__", plain)
      monkeypatch.setattr(detection, name, classmethod(plain))
    platform = "cpu" if "cpu" in present else None
    jax.config.update("jax_platforms", platform)
    with warnings.catch_warnings():
      # JAX's reader of the metadata server calls `re.split` so (Python 3.13).
      warnings.filterwarnings("ignore", "'maxsplit'", DeprecationWarning)
      if "no kubernetes" in present:  # JAX warns that it is not installed
        warnings.simplefilter("ignore")
      distributed.initialize()
    return state.num_processes, state.process_id, state.coordinator_address

  yield call
  jax.config.update("jax_platforms", platforms)


@pytest.mark.parametrize("name", DETECTED)
def test_processes_are_found_in_each_environment(name, connect):
  present, variables, expected = DETECTED[name]
  assert connect(present, variables) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_fewer_processes_than_a_variable_tells_of_are_refused(name, connect):
  present, variables, (variable, count, found) = REFUSED[name]
  said = f"expected {count} processes .{variable}., found {found}"
  # From 0.11 on, JAX detects Open MPI 5 and asks for mpi4py.
  joined = f"cannot join {count} processes of this cluster .{variable}."
  with pytest.raises(
    ValueError, match=f"({said}|{joined}).*; .*JAX_NUM_PROCESSES=1 starts"
  ):
    connect(present, variables)


def test_a_metadata_server_that_fails_is_named(connect, metadata_server):
  metadata_server[0]["worker-network-endpoints"] = "a:b"
  with pytest.raises(ValueError, match="cannot join .*unsupp.* format.*one pr"):
    connect(("tpu", "metadata"), {})


def test_a_taken_port_is_refused(connect):
  with socket.create_server(("", 0)) as server:
    port = server.getsockname()[1]
    with pytest.raises(
      ValueError, match=f"cannot listen at port {port} .*free"
    ):
      connect(
        (),
        OURS
        | {
          "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
          "JAX_PROCESS_ID": "0",
        },
      )


def test_connecting_again_changes_nothing(connect):
  assert connect((), OURS) == (3, 2, "host0:1234")
  distributed.initialize()


@pytest.fixture
def agree(monkeypatch):
  """Compare with another process whose values have these changes."""

  def call(config, **theirs):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
      distributed, "gather", lambda mine: [mine, mine | theirs]
    )
    distributed.assert_equal_across_hosts(config)

  return call


def test_code_and_versions(agree):
  agree({"seed": 1})
  with pytest.raises(ValueError, match="process 1 has code 0123, process 0 "):
    agree({"seed": 1}, code="0123")
  for name in ("jax", "jaxlib", "flax"):
    with pytest.raises(ValueError, match=f"process 1 has {name} 0.1, process"):
      agree({"seed": 1}, **{name: "0.1"})


def test_config(agree):
  config = {"seed": 1, "mesh": {"data": 2}}
  with pytest.raises(ValueError, match=r"has mesh\.data 4, process 0 2") as e:
    agree(config, **{"mesh.data": "4", "more": "5"})
  assert "process 1 has more 5, process 0 not set" in str(e.value)


@pytest.mark.parametrize(
  "name",
  ["sharding/mesh.py", "attention/splash_blocks.json", "models/released.json"],
)
def test_code_is_whatever_makes_programs(name, tmp_path, monkeypatch):
  package = tmp_path / "ovi_jax"
  leave = shutil.ignore_patterns("demo", "__pycache__")
  shutil.copytree(distributed._PACKAGE, package, ignore=leave)
  monkeypatch.setattr(distributed, "_PACKAGE", package)
  before = distributed.code_digest()
  assert distributed.code_digest() == before
  (package / "README.md").write_text("words")
  assert distributed.code_digest() == before
  (package / name).write_text("[]")
  assert distributed.code_digest() != before


def test_a_second_ctrl_c_ends_at_once():
  program = """
import os, signal
from ovi_jax.sharding import distributed as processes
with processes.preemption_watcher() as stop:
  assert not stop(0)
  os.kill(os.getpid(), signal.SIGINT)
  assert stop(0)
  print("told", flush=True)
  os.kill(os.getpid(), signal.SIGINT)
  print("not reached", flush=True)
"""
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True
  )
  assert done.returncode == -signal.SIGINT, done.stderr
  assert done.stdout == "told\n"
  assert "Ctrl-C again ends at once, without saving" in done.stderr


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_ends_a_process_that_was_told_to_stop_and_compiles(first):
  """While XLA compiles, Python's handlers do not run."""
  program = """
import ctypes
from ovi_jax.sharding import distributed as processes
c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with processes.preemption_watcher():
  print("compiling", flush=True)
  c.pthread_mutex_lock(mutex)
  c.pthread_mutex_lock(mutex)
  print("not reached", flush=True)
"""
  with subprocess.Popen(
    [sys.executable, "-c", program],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout and process.stdout.readline() == "compiling\n"
    process.send_signal(first)
    assert process.stderr and process.stderr.readline() == "\n"
    assert "at once, without saving" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.stdout.read() == ""
  assert process.returncode == 128 + signal.SIGINT


def test_more_sigterms_do_not_end_a_process_that_saves():
  """A platform sends one with its notice and another when the notice ends."""
  program = """
import os, signal
from ovi_jax.sharding import distributed as processes
with processes.preemption_watcher() as stop:
  for _ in range(3):
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop(0)
print("saved", flush=True)
"""
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == "saved\n"
  assert done.stderr.count("Ctrl-C ends at once, without saving") == 1


@pytest.mark.parametrize("index", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_processes_that_do_not_come_end_a_process_in_one_line(
  index, set_environment, monkeypatch
):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  set_environment(
    {
      "JAX_COORDINATOR_ADDRESS": address,
      "JAX_NUM_PROCESSES": "2",
      "JAX_PROCESS_ID": str(index),
      "OVI_JAX_JOIN_SECONDS": "1",
    }
  )
  program = "from ovi_jax.sharding import distributed; distributed.initialize()"
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 1, done.stderr
  (line,) = done.stderr.splitlines()
  assert "not all processes connected within 1 s" in line
  assert f"2 processes at {address} as process {index}" in line
  assert "OVI_JAX_JOIN_SECONDS" in line
