"""The commands of the guide, in a process of their own."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from ovi_jax.study import database
from ovi_jax.study import manifest
from ovi_jax.study import settings
from ovi_jax.study import simulated
from tests.lib import child_env
from tests.lib import doc_commands
from tests.lib import study_clips

GUIDE = doc_commands.DOCS / "how_to" / "preference_study.md"


def run(folder, *arguments, code=0):
  """Run the command; returns what it prints."""
  done = subprocess.run(
    [sys.executable, "-m", "ovi_jax.study", *arguments],
    cwd=folder,
    env=child_env.environment(PYTHONPATH=child_env.ROOT),
    capture_output=True,
    text=True,
  )
  assert done.returncode == code, done.stdout + done.stderr
  return done.stdout + done.stderr


@contextlib.contextmanager
def served(folder, *arguments):
  """The link of a server that runs in the block."""
  with subprocess.Popen(
    [sys.executable, "-m", "ovi_jax.study", "serve", *arguments],
    cwd=folder,
    env=child_env.environment(PYTHONPATH=child_env.ROOT),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as process:
    assert process.stdout is not None
    try:
      for line in process.stdout:
        if found := re.search(r"link for raters: (\S+)", line):
          yield found[1]
          break
      else:
        raise AssertionError("no link was printed")
    finally:
      # Not SIGINT, which programs in the background of a shell ignore.
      process.terminate()
      process.stdout.read()
  assert process.returncode == -signal.SIGTERM


def words(command):
  """The arguments of one of the guide's commands."""
  (found,) = [
    text
    for _, text in doc_commands.commands(GUIDE)
    if f"study {command} " in text and "--bundle" not in text
  ]
  return found.split()[3:]


@pytest.mark.slow
@pytest.mark.nightly
def test_the_commands_of_the_guide_make_serve_and_report_a_study(tmp_path):
  study_clips.write_systems(tmp_path, ["ours", "baseline"], 4)
  run(tmp_path, *words("make"), "--bundle=public")
  study = manifest.read(tmp_path / "study")
  arguments = [w for w in words("serve")[1:] if "--port" not in w]
  with served(tmp_path, *arguments, "--port=0", "--host=127.0.0.1") as link:
    page = urllib.request.urlopen(link.partition("#")[0]).read()
    assert b"Comparison of clips" in page
  store = database.Database(tmp_path / "study" / manifest.VOTES, study)
  strength = {
    (question.id, system, prompt): theta
    for question in study.settings.questions
    for system, theta in (("ours", 1.0), ("baseline", -1.0))
    for prompt in range(4)
  }
  rater = simulated.Rater(study=study, strength=strength)
  random = np.random.default_rng(0)
  for _ in range(3):
    simulated.judge(store, study, rater, random)
  (tmp_path / "codes.csv").write_text("code\nnot a code\n")
  problem = run(tmp_path, *words("import"), code=1)
  assert "row 1 (line 2): expected a code of the page" in problem
  assert "3 raters, 0 of them left out" in run(tmp_path, *words("report"))
  names = {path.name for path in (tmp_path / "report").iterdir()}
  assert names == {"report.html", "report.md", "report.json", "votes.csv"}
  pairs = (tmp_path / "pairs.jsonl").read_text().splitlines()
  assert len(pairs) >= 4
  assert "| 50 | 3 | 0.48 | 0.32 |" in run(tmp_path, *words("power"))
  assert run(tmp_path, "power", "--win=0.9", code=1).count("\n") == 1


def test_the_study_file_of_the_guide_is_valid(tmp_path):
  text = GUIDE.read_text("utf-8")
  (block,) = re.findall(r"^```json\n(.*?)^```$", text, re.M | re.S)
  found = settings.from_json(json.loads(block))
  assert set(found.systems) == {"ours", "baseline", "true"}
  fields = set(re.findall(r"`(\w+)`", text))
  assert set(vars(found)) - fields == set(), "a field is not in the guide"
