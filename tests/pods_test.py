"""Commands of docs/how_to/pods.md and scripts of launch/, run with stand-ins.

The stand-ins of gcloud, kubectl, docker, Slurm and xpk note how they are called
and do nothing else, but for sbatch, which runs its script.
"""

import ast
import importlib
import math
import os
import pathlib
import re
import shlex
import subprocess

import pytest

from ovi_jax.sharding import mesh as meshes
from ovi_jax.training import settings
from tests.lib import doc_commands
from tests.lib import jobset
from tests.lib import launch_files

PAGE = doc_commands.DOCS / "how_to" / "pods.md"
# Commands that other tests run.
PYTHON = re.compile(r"^python ")
STAND_IN = r"""#!/usr/bin/env bash
printf '%s\x1f' "${0##*/}" "$@" >> "$CALLS"
printf '\x1e' >> "$CALLS"
case "${0##*/} $*" in
  "gcloud projects describe "*) echo 123456 ;;
  "sbatch "*) exec bash "${@: -1}" ;;
  "srun "*) exit "$CODE" ;;
esac
"""
PROGRAMS = (
  *("docker", "gcloud", "kubectl", "sbatch", "scontrol", "srun", "tensorboard"),
  "xpk",
)
SLURM = {
  "SLURM_CPUS_PER_TASK": "16",
  "SLURM_JOB_ID": "7",
  "SLURM_ARRAY_JOB_ID": "7",
  "SLURM_ARRAY_TASK_ID": "3",
  "SLURM_ARRAY_TASK_COUNT": "32",
  "PASS": "clips",
}
CHIPS = {"ct6e-standard-4t": 4, "ct6e-standard-8t": 8}  # of a host


def run(folder: pathlib.Path, text: str, **variables: str):
  """Run a script with the stand-ins; its exit code, and their calls."""
  for name in PROGRAMS:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(STAND_IN)
    path.chmod(0o755)
  calls = folder / "calls"
  calls.write_text("")
  done = subprocess.run(
    ["bash", "-euo", "pipefail", "-c", text],
    cwd=doc_commands.ROOT,
    env={
      "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
      "CALLS": str(calls),
      "CODE": "0",
      **SLURM,
      **variables,
    },
    capture_output=True,
    text=True,
  )
  assert not done.stderr, done.stderr
  lines = calls.read_text().split("\x1e")[:-1]
  return done.returncode, [line.split("\x1f")[:-1] for line in lines]


def flag(words, name):
  """The value of a flag of a call, `--NAME=VALUE`."""
  (found,) = [w for w in words if w.startswith(f"--{name}=")]
  return found.partition("=")[2]


def selected(calls, *words):
  """The calls that begin with words."""
  return [call for call in calls if call[: len(words)] == list(words)]


@pytest.fixture(scope="module")
def commands():
  return [command for _, command in doc_commands.commands(PAGE)]


@pytest.fixture(scope="module")
def calls(commands, tmp_path_factory):
  """What the guide's commands call, in order."""
  here = [c for c in commands if not PYTHON.match(c)]
  code, found = run(tmp_path_factory.mktemp("guide"), "\n".join(here))
  assert code == 0
  return found


def test_commands_of_the_guide_have_all_their_values(calls):
  assert {call[0] for call in calls} == set(PROGRAMS) - {"scontrol"}
  for call in calls:
    assert all(call), call
    words = " ".join(call).replace("://", ":")
    assert not re.search(r"=( |$)|//|:( |$)|:/|\$", words), call


def test_files_that_the_guide_names_exist(calls):
  named = [
    call[call.index("-f") + 1]
    for program in ("kubectl", "docker")
    for call in selected(calls, program)
    if "-f" in call and "logs" not in call
  ]
  assert len(named) > 4
  for name in named:
    if name.startswith("https://"):
      assert f"/jobset/releases/download/{jobset.RELEASE}/" in name
    else:
      assert (doc_commands.ROOT / name).is_file(), name


def test_node_pools_of_the_guide_have_the_chips_that_manifests_ask_for(calls):
  pools = selected(calls, "gcloud", "container", "node-pools", "create")
  first, smaller, single = pools
  for pool in (first, smaller):
    sides = map(int, flag(pool, "tpu-topology").split("x"))
    chips = CHIPS[flag(pool, "machine-type")] * int(flag(pool, "num-nodes"))
    assert math.prod(sides) == chips == int(pool[4].removeprefix("v6e-"))
  (training,) = launch_files.jobs(launch_files.LAUNCH / "train_tpu.yaml")
  (sampling,) = launch_files.jobs(launch_files.LAUNCH / "sample.yaml")
  for pool, job in ((first, training), (single, sampling)):
    limits = launch_files.container(job)["resources"]["limits"]
    assert limits["google.com/tpu"] == CHIPS[flag(pool, "machine-type")]
    assert job["spec"]["parallelism"] == int(flag(pool, "num-nodes"))
  node = training["spec"]["template"]["spec"]["nodeSelector"]
  wanted = node["cloud.google.com/gke-tpu-topology"]
  assert wanted == flag(first, "tpu-topology")


def clips_of_a_chip(words, chips: int) -> float:
  """How many clips of a microbatch a command of training gives each chip."""
  fields = [w.partition("=") for w in words if w.startswith("--config.")]
  config = importlib.import_module("configs.fusion").get_config()
  config.update_from_flattened_dict(
    {
      name.removeprefix("--config."): ast.literal_eval(value)
      for name, _, value in fields
      if re.fullmatch(r"[\d.]+", value)
    }
  )
  chosen = settings.from_config(config)
  sizes = meshes.resolve_sizes(chosen.mesh, chips)
  assert math.prod(sizes.values()) == chips
  return config.batch_size / config.grad_accum_steps / chips


def test_chips_get_a_clip_each_in_both_sizes_of_the_guide(commands, calls):
  (job,) = launch_files.jobs(launch_files.LAUNCH / "train_tpu.yaml")
  words = launch_files.container(job)["args"]
  (compiled,) = [c.split() for c in commands if "--aot=" in c]
  first, smaller, _ = selected(
    calls, "gcloud", "container", "node-pools", "create"
  )
  name = f"v6e:{flag(smaller, 'tpu-topology')}"
  assert name == flag(compiled, "aot")
  for pool, command in ((first, words), (smaller, compiled)):
    chips = math.prod(map(int, flag(pool, "tpu-topology").split("x")))
    assert clips_of_a_chip(command, chips) == 1


def test_the_guide_copies_or_writes_what_its_manifests_read(commands, calls):
  names = set()
  for *_, source, place in selected(calls, "gcloud", "storage", "cp"):
    if place.startswith("gs://"):
      base = source.rpartition("/")[2]
      names.add(place.removeprefix("gs://my-bucket/") + base)
  (export,) = [c.split() for c in commands if "training.export" in c]
  read = flag(export, "pretrained")
  assert read.removeprefix("gs://$BUCKET/") in names
  names.add(flag(export, "out").removeprefix("gs://$BUCKET/"))
  for name in ("train_tpu.yaml", "sample.yaml"):
    (job,) = launch_files.jobs(launch_files.LAUNCH / name)
    arguments = launch_files.container(job)["args"]
    read = [a for a in arguments if not re.match("--(workdir|out)=", a)]
    places = re.findall(r"\$\(BUCKET\)/([\w./]+)", " ".join(read))
    assert places and set(places) <= names, (name, places)
    results = re.findall(
      r"--(?:workdir|out)=\$\(BUCKET\)/(\S+)", " ".join(arguments)
    )
    assert any(
      f"gs://my-bucket/{results[0]}" in " ".join(call) for call in calls
    )


def test_names_of_the_guide_are_those_of_its_manifests(calls):
  (training,) = launch_files.jobs(launch_files.LAUNCH / "train_tpu.yaml")
  pod = training["spec"]["template"]["spec"]
  account = pod["serviceAccountName"]
  assert selected(calls, "kubectl", "create", "serviceaccount", account)
  policies = selected(calls, "gcloud", "storage", "buckets")
  members = [c for c in policies if "add-iam-policy-binding" in c]
  assert len(members) == 2
  for call in members:
    assert flag(call, "member").endswith(f"/subject/ns/default/sa/{account}")
    assert "/projects/123456/" in flag(call, "member")
  name = training["metadata"]["name"]
  assert selected(calls, "kubectl", "delete", "jobset", name)
  (logs,) = selected(calls, "kubectl", "logs")
  assert f"jobset.sigs.k8s.io/jobset-name={name}," in logs[-1]
  image = launch_files.container(training)["image"]
  image = image.replace("REGION", "us-east5").replace("PROJECT", "my-project")
  assert selected(calls, "docker", "push", image)
  (built,) = selected(calls, "docker", "build")
  assert image in built


@pytest.mark.parametrize("path", launch_files.SHELL, ids=lambda p: p.name)
def test_scripts_start_commands_whose_flags_exist(path, tmp_path):
  code, calls = run(tmp_path, f"bash {path} --dry-run")
  (call,) = calls
  assert code == 0 and all(call)
  if path.suffix == ".sh":
    assert call[:4] == ["xpk", "workload", "create", "--dry-run"]
    call = shlex.split(flag(call, "command"))
    assert call[:2] == ["exec", "ovi-train"]
  launch_files.check_command(call)


@pytest.mark.parametrize(
  ("name", "code", "restarts", "again"),
  [
    ("train.sbatch", 0, 0, False),
    ("train.sbatch", 75, 99, True),  # interrupted
    ("train.sbatch", 76, 19, True),  # a step took too long
    ("train.sbatch", 76, 20, False),
    ("train.sbatch", 137, 0, True),  # killed
    ("train.sbatch", 142, 0, True),  # likewise, in a blocked interpreter
    ("train.sbatch", 1, 0, False),  # an error
    ("sample.sbatch", 1, 0, False),
    ("curate.sbatch", 75, 99, True),
    ("curate.sbatch", 1, 0, False),
  ],
)
def test_jobs_of_slurm_are_queued_again_by_exit_code(
  name, code, restarts, again, tmp_path
):
  variables = {"CODE": str(code), "SLURM_RESTART_COUNT": str(restarts)}
  ended, calls = run(tmp_path, f"sbatch launch/{name}", **variables)
  assert ended == code
  job = "7_3" if name == "curate.sbatch" else "7"
  queued = [["scontrol", "requeue", job]] if again else []
  assert calls[2:] == queued
