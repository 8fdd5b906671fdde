"""The files of launch/: schemas, shell, flags, and what they have in common."""

import fnmatch
import functools
import importlib.util
import json
import pathlib
import re
import runpy
import subprocess
import sys
from typing import Any

import kubernetes_validate
import pytest
import setuptools
import yaml

from ovi_jax.training import loop
from tests.lib import jobset
from tests.lib import launch_files

ROOT, LAUNCH = launch_files.ROOT, launch_files.LAUNCH
MANIFESTS, SHELL = launch_files.MANIFESTS, launch_files.SHELL
MIN_GRACE_SECONDS = 20


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_manifests_fit_the_schemas_and_name_flags_that_exist(path):
  for job in launch_files.jobs(path):
    found = launch_files.container(job)
    words = [*found["command"], *found["args"]]
    assert words[:2] == ["tini", "--"]  # SIGTERM reaches the command
    launch_files.check_command(words[2:])
    names = {entry["name"] for entry in found["env"]}
    used = re.findall(r"\$\((\w+)\)", " ".join(words))
    assert set(used) <= names
    values = [e["value"] for e in found["env"] if "value" in e]
    assert set(re.findall(r"\$\((\w+)\)", " ".join(values))) <= names


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_jobs_run_as_a_user_and_have_time_to_save(path):
  for job in launch_files.jobs(path):
    spec = job["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["restartPolicy"] == "Never"
    assert spec["terminationGracePeriodSeconds"] >= MIN_GRACE_SECONDS
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    counts = job["metadata"]["annotations"].get("edit-pods")
    assert counts in (None, str(job["spec"]["completions"]))


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("train_*.yaml")))
def test_training_restarts_after_exit_code_75_and_has_shared_memory(path):
  (job,) = launch_files.jobs(path)
  first = job["spec"]["podFailurePolicy"]["rules"][0]
  assert first["onExitCodes"] == {
    "containerName": launch_files.container(job)["name"],
    "operator": "In",
    "values": [loop.INTERRUPTED],
  }
  spec = job["spec"]["template"]["spec"]
  (grace,) = [
    float(word.partition("=")[2])
    for word in launch_files.container(job)["args"]
    if word.startswith("--config.preemption_grace_seconds=")
  ]
  assert 0 < grace < spec["terminationGracePeriodSeconds"]
  assert {"name": "shm", "mountPath": "/dev/shm"} in launch_files.container(
    job
  )["volumeMounts"]
  assert spec["volumes"][0]["emptyDir"]["medium"] == "Memory"


def test_a_misspelt_field_is_found():
  job = next(iter(launch_files.jobs(LAUNCH / "sample.yaml")))
  job["spec"]["paralelism"] = 2
  with pytest.raises(kubernetes_validate.ValidationError, match="paralelism"):
    launch_files.check_schema(job)
  words = ["ovi-train", "--config=fusion", "--config.bach_size=2"]
  with pytest.raises(AssertionError, match="bach_size"):
    launch_files.check_command(words)


@pytest.mark.parametrize(
  ("place", "value", "problem"),
  [
    (("spec", "failurePolicy", "maxRestart"), 1, "'maxRestart' was unexpected"),
    (("spec", "failurePolicy", "maxRestarts"), "1", "'1' is not of type"),
    (("spec", "failurePolicy", "restartStrategy"), "Block", "not one of"),
    (("spec", "failurePolicy", "rules", 0, "action"), "Restart", "not one of"),
    (("spec", "failurePolicy", "rules", 0, "name"), "a-b", "does not match"),
    (
      ("spec", "failurePolicy", "rules", 0, "onJobFailureReasons"),
      ["Evicted"],
      "not one of",
    ),
    (
      ("spec", "failurePolicy", "rules", 0, "targetReplicatedJobs"),
      ["host"],
      "no replicated job host",
    ),
    (("spec", "successPolicy"), {}, "'operator' is a required property"),
    (("spec",), {}, "'replicatedJobs' is a required property"),
    (("spec", "replicatedJobs", 0, "replica"), 2, "'replica' was unexpected"),
    (("metadata", "name"), "Ovi", "is no name of a pod"),
    (("metadata", "name"), "o" * 50, "is no name of a pod"),
  ],
)
def test_what_a_cluster_refuses_in_a_jobset_is_found(place, value, problem):
  text = (LAUNCH / "train_tpu.yaml").read_text("utf-8")
  document = yaml.safe_load(text)
  assert not jobset.problems(document)
  *folders, name = place
  functools.reduce(lambda found, key: found[key], folders, document)[name] = (
    value
  )
  (found,) = jobset.problems(document)
  assert problem in found


@pytest.mark.parametrize("path", SHELL, ids=lambda p: p.name)
def test_shell_files_are_valid(path):
  """Their commands are in tests/pods_test.py."""
  checker = pathlib.Path(sys.executable).with_name("shellcheck")
  for command in (["bash", "-n", path], [checker, path]):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def project():
  """What setup.py says of the package."""
  return setup_of(ROOT)


def setup_of(folder: pathlib.Path) -> dict[str, Any]:
  """The arguments of `setuptools.setup` in a folder's setup.py."""
  given: dict[str, Any] = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.setattr(setuptools, "setup", lambda **values: given.update(values))
    runpy.run_path(str(folder / "setup.py"))
  return given


def image_steps() -> list[list[str]]:
  """The instructions of the Dockerfile, each as words."""
  text = (LAUNCH / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
  lines = [x.split() for x in text.splitlines() if not x.startswith("#")]
  return [words for words in lines if words]


def sent_to_the_builder(path: str) -> bool:
  """Whether .dockerignore lets a path through; the last match decides."""
  sent = True
  for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines():
    pattern = line.strip()
    if pattern and not pattern.startswith("#"):
      name = pattern.removeprefix("!")
      parts = [path, *map(str, pathlib.PurePosixPath(path).parents)]
      anywhere = name.removeprefix("**/") if name.startswith("**/") else None
      if any(
        fnmatch.fnmatch(pathlib.PurePosixPath(p).name, anywhere)
        if anywhere
        else fnmatch.fnmatch(p, name)
        for p in parts
        if p != "."
      ):
        sent = pattern.startswith("!")
  return sent


def test_the_image_has_all_files_of_the_package(project, tmp_path):
  copied = [words[1:] for words in image_steps() if words[0] == "COPY"]
  for *sources, target in copied:
    for name in sources:
      assert (ROOT / name).exists() and sent_to_the_builder(name), name
      place = tmp_path / target
      place = place / name if target == "./" else place
      place.symlink_to(ROOT / name)
  assert sent_to_the_builder("ovi_jax/models/shapes.json")
  assert not sent_to_the_builder("ovi_jax/models/__pycache__/a.pyc")
  assert not sent_to_the_builder("tests/conftest.py")
  inside = setup_of(tmp_path)
  assert inside["packages"] == project["packages"]
  assert inside["long_description"] == project["long_description"]
  for folder in ("ovi_jax", "configs"):
    assert (tmp_path / folder).is_dir()
  text = (LAUNCH / "Dockerfile").read_text("utf-8")
  for extras in re.findall(r"EXTRAS=([\w,]+)", text):
    assert set(extras.split(",")) <= set(project["extras_require"]), extras
  for constraints in re.findall(r"CONSTRAINTS=(\S+)", text):
    assert (tmp_path / constraints).exists()


def test_the_dockerfile_follows_the_usual_rules():
  """Those of hadolint that apply to these instructions."""
  steps = image_steps()
  names = [words[0] for words in steps]
  assert set(names) <= {
    *("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "USER"),
    "WORKDIR",
  }
  assert names[0] == "FROM"
  assert ":" in steps[0][1] and not steps[0][1].endswith(":latest")
  assert steps[names.index("USER")][1] == "1000"
  assert names.index("USER") > max(i for i, n in enumerate(names) if n == "RUN")
  assert steps[names.index("WORKDIR")][1].startswith("/")
  for words in steps:
    text = " ".join(words)
    if words[0] in ("ENTRYPOINT", "CMD"):
      assert json.loads(text.partition(" ")[2])  # no shell, which eats signals
    for name in re.findall(r"\$\{?(\w+)", text):
      assert ["ARG", name] in [[w[0], w[1].partition("=")[0]] for w in steps]
    if "apt-get install" in text:
      assert re.search(r"apt-get update .*--yes --no-install-rec", text)
      assert text.index("install") < text.index("rm -rf /var/lib/apt/lists/")
    if "pip install" in text:
      assert "--no-cache-dir" in text and "--constraint" in text


def test_programs_that_are_started_exist_in_the_image(project):
  steps = image_steps()
  (installed,) = [
    re.findall(r"recommends (.*?) &&", " ".join(w))[0].split()
    for w in steps
    if "apt-get" in w
  ]
  scripts = {
    e.split(" = ")[0] for e in project["entry_points"]["console_scripts"]
  }
  commands = [
    [
      *launch_files.container(job)["command"],
      *launch_files.container(job)["args"],
    ]
    for path in MANIFESTS
    for job in launch_files.jobs(path)
  ]
  commands += [
    [*json.loads(" ".join(entry[1:])), *json.loads(" ".join(words[1:]))]
    for entry in steps
    for words in steps
    if entry[0] == "ENTRYPOINT" and words[0] == "CMD"
  ]
  for first, dashes, program, *words in commands:
    assert [first, dashes] == ["tini", "--"] and first in installed
    if program == "python":
      assert words[0] == "-m" and importlib.util.find_spec(words[1])
    else:
      assert program in scripts
  for path in SHELL:
    for program in re.findall(r"\bovi-[a-z]+(?= --)", path.read_text("utf-8")):
      assert program in scripts


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
