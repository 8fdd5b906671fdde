"""Console output: unwritable streams, encodings and log lines."""

import io
import logging
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from ovi_jax import console

SCRIPT = """
import pathlib, sys
from ovi_jax import console
console.setup()
console.log("a red ball \\u011b \\x1b[31m\\u202e")
for _ in console.progress(range(3), desc="clip \\u011b"):
  print("y" * 100_000)  # more than a pipe holds
console.error("last \\u011b\\udc80\\nwords\\x07")
pathlib.Path(sys.argv[1]).write_text("done")
"""


def run(tmp_path: pathlib.Path, redirect: str, **environment: str):
  """Run a script that prints; returns what a shell's pipe received."""
  script = tmp_path / "script.py"
  script.write_text(SCRIPT)
  command = f"{sys.executable} {script} {tmp_path / 'done'} {redirect}"
  pipe = f"set -o pipefail; {command}"
  done = subprocess.run(
    ["bash", "-c", pipe],
    capture_output=True,
    env=os.environ | environment,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "done").read_text() == "done"
  return done


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_characters_missing_in_the_encoding_are_escaped(tmp_path, encoding):
  done = run(tmp_path, "", PYTHONIOENCODING=encoding)
  letter = "ě" if encoding == "utf-8" else "\\u011b"
  out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
  assert out.splitlines()[0] == f"a red ball {letter} \\x1b[31m\\u202e"
  # No progress bar where no terminal is.
  assert err == f"last {letter}\\udc80\nwords\\x07\n"


@pytest.mark.parametrize(
  "redirect",
  ["| head -c 1", "2>&1 | true", ">&-", "2>&-", ">&- 2>&-", ">/dev/full"],
)
def test_output_to_a_closed_pipe_is_dropped(tmp_path, redirect):
  run(tmp_path, redirect)


def test_log_needs_no_setup(capsys, monkeypatch):
  console.log("a\x1b[1m\nb")
  assert capsys.readouterr().out == "a\\x1b[1m\nb\n"
  for stream in (None, closed()):
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    console.log("nobody reads this")
    console.error("nor this")
    assert list(console.progress(range(3))) == [0, 1, 2]


def closed():
  stream = io.StringIO()
  stream.close()
  return stream


def test_bars_become_lines_where_no_terminal_is(capsys, monkeypatch):
  monkeypatch.setattr(console, "SECONDS_A_LINE", 0)
  with console.progress(total=2, desc="steps") as bar:
    bar.set_postfix(loss="0.5")
  err = capsys.readouterr().err
  assert "\r" not in err and "loss=0.5" in err.splitlines()[-1]
  monkeypatch.setattr(console, "SECONDS_A_LINE", 30)
  with console.progress(total=2, desc="steps") as bar:
    bar.set_postfix(loss="0.5")
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("term", "draws"), [("xterm", True), ("dumb", False)])
def test_bars_need_a_terminal_that_rewrites_lines(monkeypatch, term, draws):
  monkeypatch.setenv("TERM", term)
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
  assert console.draws_bars() is draws


def test_a_line_is_not_written_into_a_bar(monkeypatch):
  stream = io.StringIO()
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setattr(stream, "isatty", lambda: True)
  monkeypatch.setattr(sys, "stdout", stream)
  monkeypatch.setattr(sys, "stderr", stream)
  with console.progress(total=2, desc="steps"):
    console.log("wrote a.mp4")
  before, _, after = stream.getvalue().partition("wrote a.mp4\n")
  assert "steps" in before and "steps" in after
  *_, cleared, line = before.split("\r")
  assert not cleared.strip() and not line


ROOT = pathlib.Path(console.__file__).resolve().parents[1]
COMMANDS = [
  path
  for path in sorted(
    [
      *ROOT.glob("*.py"),
      *(ROOT / "ovi_jax").rglob("*.py"),
      *(ROOT / "scripts").rglob("*.py"),
    ]
  )
  if '__name__ == "__main__"' in path.read_text("utf-8")
  and path.stem != "shapes"  # prints nothing
]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda p: p.stem)
def test_every_command_makes_its_console_safe(path):
  assert len(COMMANDS) > 10
  text = path.read_text("utf-8")
  if path.parent.name == "curation":  # defines its flags where workers do not
    text = path.with_name("command.py").read_text("utf-8")
  if "runner.start(" in text:  # a recipe, whose flags are those of all recipes
    text = path.with_name("runner.py").read_text("utf-8")
  own = "flags_parser=cli.parse_flags", "cli.run(", "console.setup()"
  # Scripts run through `cli.run_script`.
  assert any(x in text for x in (*own, "from ovi_jax.commands import"))


def test_ctrl_c_is_one_line_and_ends_a_command_by_the_signal(tmp_path):
  script = tmp_path / "wait.py"
  script.write_text(
    "import os, signal\n"
    "from ovi_jax import cli\n"
    # A program that is started in the background ignores it.
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "cli.run(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
  )
  done = subprocess.run(
    [sys.executable, str(script)], capture_output=True, text=True, check=False
  )
  assert done.returncode == -signal.SIGINT
  line = "wait: interrupted; the same command can be run again\n"
  assert (done.stdout, done.stderr) == ("", line)


def test_commands_print_the_log_once_and_libraries_none_of_it(tmp_path):
  script = """
import logging
from ovi_jax import console
logging.getLogger("ovi_jax.before").info("not printed: no command runs")
console.setup()
console.setup()
logging.getLogger("ovi_jax.data").info("read %d clips\\x1b", 3)
logging.getLogger("__main__").info("started by python -m")
logging.getLogger("ovi_jax").debug("hidden")
logging.getLogger("orbax").info("hidden")
"""
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=True
  )
  assert (done.stdout, done.stderr) == (
    "read 3 clips\\x1b\nstarted by python -m\n",
    "",
  )


def test_log_lines_are_collected(log_lines):
  logging.getLogger("ovi_jax.models").info("loaded")
  assert log_lines == ["loaded"]
