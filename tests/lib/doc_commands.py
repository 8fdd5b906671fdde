"""Commands of README.md and the guides: found, shortened and run.

Commands run in a folder that looks like the repository, as a reader would run
them. Only numbers of steps, clips and prompts are smaller, and a stand-in takes
the place of the released weights.
"""

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping

from tests.lib import child_env

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCED = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FEWER = (
  " --config.num_train_steps=4 --config.optimizer.warmup_steps=2"
  " --config.log_every=2"
)
# Pattern in a command -> arguments that are added at its end.
_ADDED: Mapping[str, str] = {
  r"^python train\.py ": FEWER,
  r"^python train\.py .*sample_every": " --config.eval_samples.num_steps=2",
  r"^python sample\.py (?!.*config\.num_steps)": " --config.num_steps=2",
  r"^python -m scripts\.small_ovi\.ablation ": " --dry_run",
  r"^python -m ovi_jax\.synthetic\.evaluation codecs ": " --count=2",
  r"^python -m ovi_jax\.data\.tokenizer ": " --clips=20",
}
_REPLACED: Mapping[str, str] = {
  r"((?:eval|sample)_every)=100": r"\1=4",
  r"--count=(?:96|100)\b": "--count=2",
  r"--trained=1:5000,3:2500:": "--trained=1:50,3:25:",
  r"--evaluate=": "--num_eval_clips=1 --evaluate=",
  r"--variant=960x960_10s": "--arch=ovi_jax/convert/standin/manifest.json",
  r", seed=7\b": ", seed=7, num_steps=2",  # of a call from Python
}
# Pattern in a command or a Python block -> why no test runs it as written.
NOT_RUN: Mapping[str, str] = {
  r"^make test$": "it runs the tests",
  r"^source \.venv/bin/activate$": "the tests' environment is active",
  r"\bpip install ": "network; the tests' environment is complete",
  r" --download=": "network; tests/convert/download_test.py has a fake hub",
  r"configs/fine_tune\.py:weights/960x960_5s": "released weights;"
  " tests/training/fine_tuning_test.py",
  r"configs/conditions/": "train.md trains the same objective;"
  " tests/training/conditions_test.py",
  r"configs/codec_|training\.codecs\.assemble": "minutes of compilation each;"
  " tests/training/task_test.py and codecs/ do the same at smaller sizes",
  r" --workdir=runs/(?:tuned|more) | --data=runs/my_clips ": "fine_tune.md and"
  " train.md run the same with other paths",
  r"curation\.sync\.train --out=": "a minute of compilation;"
  " tests/curation/sync/training_test.py",
  r"python -m ovi_jax\.curation |^def (?:load|get_config)\(": "needs"
  " '.[curate]' and real media; tests/curation/docs_test.py checks settings and"
  " runs the Python blocks, end_to_end_test.py and real_media_test.py the rest",
  r"evaluation (?:import-features|convert-list) |--features=": "files of other"
  " projects; tests/evaluation",
  r"ovi_jax\.study (?:make|serve|import|report) ": "clips and raters;"
  " tests/study/command_test.py runs all of them",
  r"runs/dark": "minutes of training;"
  " tests/scripts/small_ovi/dark_ball_test.py runs all of them as written",
  r"^python -m ovi_jax\.studio\b": "it serves until it is stopped;"
  " tests/studio/browser_test.py starts it",
  r"^curl |^import openai|^ln -s ": "a service that runs;"
  " tests/studio/service_test.py and tests/integrations do the same",
  r"gs://": "a bucket; tests/object_storage_test.py and"
  " tests/train_bucket_test.py have an emulated one",
  r"^vllm serve ": "a GPU; tests of captions have a server of the protocol",
  r" --config\.mesh\.|^JAX_COORDINATOR_ADDRESS=": "many devices or hosts;"
  " tests/sharding/equality_test.py, tests/train_processes_test.py",
  r"--first_frame_endpoint=": "an endpoint;"
  " tests/sampling/first_frames_test.py has a server",
  r" --aot=": "minutes of compilation, at small sizes too; tests/aot, and"
  " tests/pods_test.py for the sizes",
  r"benchmarks\.splash_blocks ": "a TPU",
  r"^(?:gcloud|kubectl|docker|tensorboard|export|sbatch|bash) ": "a cluster;"
  " tests/pods_test.py runs them with stand-ins for the programs",
}
# Pattern of commands that run in a test of their own -> the test.
RUN_ALONE: Mapping[str, str] = {
  r"curation\.sync\.(?:train --evaluate=|convert )": "curation/docs_test.py",
  r"ovi_jax\.study power ": "study/command_test.py",
  r"scripts\.small_ovi\.study ": "scripts/small_ovi/study_test.py",
  r"^python -m ovi_jax\.training\.export .*=gs://\$BUCKET": (
    "training/export_test.py"
  ),
}


def guides() -> list[pathlib.Path]:
  """README.md and the pages whose commands a reader runs."""
  how_to = sorted((DOCS / "how_to").glob("*.md"))
  return [ROOT / "README.md", DOCS / "getting_started.md", *how_to]


def pages() -> list[pathlib.Path]:
  """All pages of the documentation, but copies in the built site."""
  found = sorted(DOCS.rglob("*.md"))
  return [p for p in found if not p.is_relative_to(DOCS / "_build")]


def commands(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Commands of a page in order: ("bash", one command) or ("python", block)."""
  for kind, text in FENCED.findall(path.read_text("utf-8")):
    if kind == "python":
      yield kind, text
      continue
    text = text.replace("\\\n", " ")
    for line in text.splitlines():
      line = re.sub(r"\s+#\s.*$", "", line).strip()
      if line and not line.startswith("#"):
        yield kind, re.sub(r" +", " ", line)


def is_excluded(command: str) -> bool:
  """Whether `NOT_RUN` has a reason for it."""
  return any(re.search(p, command, re.MULTILINE) for p in NOT_RUN)


def run_pages(
  paths: Collection[pathlib.Path],
  folder: pathlib.Path,
  others: Collection[str] = (),
) -> list[str]:
  """Run the commands of pages in order, equal ones once, but `NOT_RUN`.

  Args:
    paths: of the pages.
    folder: that they run in.
    others: commands that another test runs.

  Returns:
    The commands that were run, as written.
  """
  done: list[str] = []
  for path in paths:
    for kind, command in commands(path):
      if command not in (*done, *others) and not is_excluded(command):
        run(kind, command, folder)
        done.append(command)
  return done


def run(
  kind: str, text: str, folder: pathlib.Path, shorten: bool = True
) -> None:
  """Run a block of a document in a folder that looks like the repository.

  Args:
    kind: "bash" or "python".
    text: the block.
    folder: to run in.
    shorten: with fewer steps, clips and prompts.
  """
  text = text.replace("\\\n", " ") if kind == "bash" else text
  if kind == "bash" and text.startswith("make "):
    text = _recipe(text.removeprefix("make ").strip())
  for pattern, other in _REPLACED.items() if shorten else ():
    text = re.sub(pattern, other, text)
  if kind == "bash":
    for pattern, more in _ADDED.items() if shorten else ():
      text = re.sub(rf"{pattern}.*$", rf"\g<0>{more}", text, flags=re.M)
    command = ["bash", "-euc", text]
  else:
    command = [sys.executable, "-c", text]
  done = subprocess.run(
    command, cwd=folder, env=_environment(), capture_output=True, text=True
  )
  assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def _environment() -> dict[str, str]:
  path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  return child_env.environment(PATH=path, PYTHONPATH=ROOT)


def _recipe(target: str) -> str:
  """The commands of a Makefile's target, without those that install."""
  make = ["make", "--dry-run", "--no-print-directory"]
  make += ["--old-file=.venv/ready", "PY=python", target]
  done = subprocess.run(
    make, cwd=ROOT, check=True, capture_output=True, text=True
  )
  return done.stdout.replace("\\\n", " ")


def repository(folder: pathlib.Path) -> None:
  """Lay a folder out like the repository, with a folder for results."""
  for name in ("train.py", "sample.py", "convert_torch_weights.py"):
    (folder / name).symlink_to(ROOT / name)
  for name in ("configs", "ovi_jax", "scripts", "docs", "launch"):
    (folder / name).symlink_to(ROOT / name)
  (folder / "runs").mkdir()
