"""The files of launch/: manifests, shell files and the commands in them."""

import functools
import importlib
import inspect
import pathlib
import re
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import kubernetes_validate
import yaml

from ovi_jax.commands import sample
from ovi_jax.commands import train
from ovi_jax.curation import command as curation
from tests.lib import jobset

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
MANIFESTS = sorted(LAUNCH.glob("*.yaml"))
SHELL = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
KUBERNETES = "1.32"
_PROGRAMS = {"ovi-train": "train", "ovi-sample": "sample", "python": "curate"}


def check_schema(document: Any) -> None:
  """Check a document of Kubernetes itself.

  Raises:
    kubernetes_validate.ValidationError: a field is unknown, missing or of
      another type.
  """
  kubernetes_validate.validate(document, KUBERNETES, strict=True)


def jobs(path: pathlib.Path) -> Iterator[Any]:
  """Jobs of a manifest, all of whose documents are checked."""
  for document in yaml.safe_load_all(path.read_text("utf-8")):
    if document["kind"] != "JobSet":
      check_schema(document)
      if document["kind"] == "Job":
        yield document
      continue
    assert not (found := jobset.problems(document)), found
    for replicated in document["spec"]["replicatedJobs"]:
      job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": document["metadata"],
        **replicated["template"],
      }
      check_schema(job)
      yield job


def container(job: Any) -> Any:
  """The container of a Job's pods."""
  (found,) = job["spec"]["template"]["spec"]["containers"]
  return found


@functools.cache
def defined_flags(program: str) -> set[str]:
  """The flags that a command defines."""
  modules = {"train": train, "sample": sample, "curate": curation}
  text = inspect.getsource(modules[program])
  names = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text))
  return names | {"config"}


def check_command(words: Sequence[str]) -> None:
  """Check that the flags and config fields of a command exist.

  Args:
    words: of the command; those before the program are of what starts it.
  """
  words = words[next(i for i, w in enumerate(words) if w in _PROGRAMS) :]
  program = _PROGRAMS[words[0]]
  named = [w for w in words if w.startswith("--config=")]
  name = named[0].partition("=")[2] if named else "sample"
  config = importlib.import_module(f"configs.{name}").get_config()
  for word in words:
    if not word.startswith("--"):
      continue
    flag = word[2:].partition("=")[0]
    if not flag.startswith("config."):
      assert flag in defined_flags(program), word
      continue
    value = config
    for part in flag.split(".")[1:]:
      assert part in value, word
      value = value[part]
