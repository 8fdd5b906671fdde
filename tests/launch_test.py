"""The files of launch/: schemas, shell, flags, and what they have in common."""

import functools
import importlib
import pathlib
import re
import runpy
import shlex
import subprocess
import sys

import kubernetes_validate
import pytest
import setuptools
import yaml

from ovi_jax.commands import sample
from ovi_jax.commands import train
from ovi_jax.curation import command as curation

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
MANIFESTS = sorted(LAUNCH.glob("*.yaml"))
SHELL = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
KUBERNETES = "1.32"
MIN_GRACE_SECONDS = 20
# Facts about JobSet's fields, jobset.x-k8s.io/v1alpha2.
JOBSET = {"replicatedJobs", "failurePolicy", "network", "successPolicy"}
FAILURE_POLICY = {"maxRestarts", "restartStrategy", "rules"}
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}
REASONS = {"BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"}
PROGRAMS = {"ovi-train": "train", "ovi-sample": "sample", "python": "curate"}


def documents(path):
  return list(yaml.safe_load_all(path.read_text("utf-8")))


def check_schema(document):
  kubernetes_validate.validate(document, KUBERNETES, strict=True)


def jobs(path):
  """Validated Jobs of a manifest."""
  for document in documents(path):
    if document["kind"] != "JobSet":
      check_schema(document)
      if document["kind"] == "Job":
        yield document
      continue
    assert document["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
    check_policy(document["spec"])
    for replicated in document["spec"]["replicatedJobs"]:
      assert set(replicated) == {"name", "replicas", "template"}
      job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": document["metadata"],
        **replicated["template"],
      }
      check_schema(job)
      yield job


def check_policy(spec):
  assert set(spec) <= JOBSET
  policy = spec["failurePolicy"]
  assert set(policy) <= FAILURE_POLICY
  assert policy["maxRestarts"] > 0
  assert policy["restartStrategy"] == "BlockingRecreate"
  for rule in policy["rules"]:
    assert rule["action"] in ACTIONS
    assert set(rule["onJobFailureReasons"]) <= REASONS


def container(job):
  (found,) = job["spec"]["template"]["spec"]["containers"]
  return found


@functools.cache
def defined_flags(program):
  """The flags that a command defines."""
  text = pathlib.Path(
    {"train": train, "sample": sample, "curate": curation}[program].__file__
  ).read_text("utf-8")
  names = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text))
  return names | {"config"}


def check_command(words):
  """Check the flags and config fields of a command."""
  program = next(PROGRAMS[w] for w in words if w in PROGRAMS)
  named = [w for w in words if w.startswith("--config=")]
  name = named[0].partition("=")[2] if named else "sample"
  config = importlib.import_module(f"configs.{name}").get_config()
  for word in words:
    if not word.startswith("--") or word == "--":
      continue
    flag = word[2:].partition("=")[0]
    if not flag.startswith("config."):
      assert flag in defined_flags(program), word
      continue
    value = config
    for part in flag.split(".")[1:]:
      assert part in value, word
      value = value[part]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_manifests_fit_the_schemas_and_name_flags_that_exist(path):
  for job in jobs(path):
    found = container(job)
    words = [*found["command"], *found["args"]]
    assert words[:2] == ["tini", "--"]  # SIGTERM reaches the command
    check_command(words[2:])
    names = {entry["name"] for entry in found["env"]}
    used = re.findall(r"\$\((\w+)\)", " ".join(words))
    assert set(used) <= names
    values = [e["value"] for e in found["env"] if "value" in e]
    assert set(re.findall(r"\$\((\w+)\)", " ".join(values))) <= names


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_jobs_run_as_a_user_and_have_time_to_save(path):
  for job in jobs(path):
    spec = job["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["restartPolicy"] == "Never"
    assert spec["terminationGracePeriodSeconds"] >= MIN_GRACE_SECONDS
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    counts = job["metadata"]["annotations"].get("edit-pods")
    assert counts in (None, str(job["spec"]["completions"]))


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("train_*.yaml")))
def test_training_restarts_after_exit_code_75_and_has_shared_memory(path):
  (job,) = jobs(path)
  first = job["spec"]["podFailurePolicy"]["rules"][0]
  assert first["onExitCodes"] == {
    "containerName": container(job)["name"],
    "operator": "In",
    "values": [train.loop.INTERRUPTED],
  }
  spec = job["spec"]["template"]["spec"]
  (grace,) = [
    float(word.partition("=")[2])
    for word in container(job)["args"]
    if word.startswith("--config.preemption_grace_seconds=")
  ]
  assert 0 < grace < spec["terminationGracePeriodSeconds"]
  assert {"name": "shm", "mountPath": "/dev/shm"} in container(job)[
    "volumeMounts"
  ]
  assert spec["volumes"][0]["emptyDir"]["medium"] == "Memory"


def test_a_misspelt_field_is_found():
  job = next(iter(jobs(LAUNCH / "sample.yaml")))
  job["spec"]["paralelism"] = 2
  with pytest.raises(kubernetes_validate.ValidationError, match="paralelism"):
    check_schema(job)
  with pytest.raises(AssertionError, match="bach_size"):
    check_command(["ovi-train", "--config=fusion", "--config.bach_size=2"])


@pytest.mark.parametrize("path", SHELL, ids=lambda p: p.name)
def test_shell_files_are_valid_and_name_flags_that_exist(path):
  checker = pathlib.Path(sys.executable).with_name("shellcheck")
  for command in (["bash", "-n", path], [checker, path]):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
  text = path.read_text("utf-8").replace("\\\n", " ")
  found = re.findall(
    r"((?:ovi-train|ovi-sample|python -m ovi_jax\.curation) --.*)", text
  )
  assert len(found) == 1
  words = shlex.split(re.split(r'\s\|\||"$', found[0])[0].replace('\\"', '"'))
  check_command(words)


def test_the_image_has_existing_files_and_extras_and_no_root(monkeypatch):
  given = {}
  monkeypatch.setattr(
    setuptools, "setup", lambda **values: given.update(values)
  )
  runpy.run_path(str(ROOT / "setup.py"))
  text = (LAUNCH / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
  for extras in re.findall(r"EXTRAS=([\w,]+)", text):
    assert set(extras.split(",")) <= set(given["extras_require"]), extras
  lines = [line.split() for line in text.splitlines() if line.strip()]
  steps = [words for words in lines if words[0].isupper()]
  for words in steps:
    if words[0] == "COPY":
      assert all((ROOT / name).exists() for name in words[1:-1]), words
  names = [words[0] for words in steps]
  assert names[0] == "FROM" and ":" in steps[0][1]
  assert steps[names.index("USER")][1] == "1000"
  assert 'ENTRYPOINT ["tini", "--"]' in text
  assert "--constraint" in text


def test_workflow_jobs_call_targets_of_the_makefile():
  text = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
  targets = set(
    re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
  )
  assert yaml.safe_load(text)["jobs"]
  called = set(re.findall(r"target: \[(.*)\]", text)[0].split(", "))
  called |= {f"test-{lane}" for lane in re.findall(r"lane: ([\w-]+)", text)}
  assert len(called) > 5
  assert called <= targets, called
