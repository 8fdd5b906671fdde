"""Setting up JAX: absent TPUs, the compilation cache, every command."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import jax
import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from ovi_jax import cli
from ovi_jax import interrupts

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMANDS = [
  path
  for pattern in ("*.py", "ovi_jax/**/*.py")
  for path in sorted(ROOT.glob(pattern))
  if re.search(r"(app|cli)\.run\(", path.read_text())
]


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
  """Run code in a process where no platform is chosen and no TPU is named."""
  inherited = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("JAX_", "TPU_", "XLA_"))
  }
  return subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
    capture_output=True,
    text=True,
    check=True,
  )


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None or cli.has_tpu(),
  reason="needs libtpu and no TPU",
)
def test_a_command_does_not_start_libtpu_on_a_machine_without_a_tpu():
  done = python(
    "import jax, pathlib\n"
    "from ovi_jax import cli\n"
    "cli.parse_flags(['command'])\n"
    "print(jax.devices()[0].platform)\n"
    "print('libtpu' in pathlib.Path('/proc/self/maps').read_text())\n"
  )
  assert done.stderr == ""
  assert done.stdout.split()[1] == "False"


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None or cli.has_tpu(),
  reason="needs libtpu and no TPU",
)
def test_asking_for_the_platform_alone_prints_nothing():
  done = python("from ovi_jax import cli; print(cli.platform())")
  assert done.stderr == ""


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_command_sets_up_jax_when_it_parses_flags(path):
  for arguments in re.findall(r"app\.run\((.*)\)", path.read_text()):
    assert re.search(r"flags_parser=(cli\.)?parse_flags", arguments)


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """An empty machine: its device files and its PCI bus."""
  for name in list(os.environ):
    if name.startswith("TPU_") or name == "JAX_FORCE_TPU_INIT":
      monkeypatch.delenv(name)
  devices, bus = tmp_path / "dev", tmp_path / "bus"
  devices.mkdir()
  bus.mkdir()
  return devices, bus


def plug(bus: pathlib.Path, vendor: str, kind: str) -> None:
  """Add a PCI device."""
  device = bus / f"0000:00:0{len(list(bus.iterdir()))}.0"
  device.mkdir()
  (device / "vendor").write_text(f"{vendor}\n")
  (device / "class").write_text(f"{kind}\n")


def test_a_machine_with_disks_and_a_network_card_has_no_tpu(
  machine, monkeypatch
):
  devices, bus = machine
  plug(bus, "0x1ae0", "0x020000")  # a Google virtual machine's
  plug(bus, "0x1ae0", "0x010802")
  plug(bus, "0x10de", "0x030200")  # a GPU
  monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # as JAX sets it
  monkeypatch.setenv("TPU_LIBRARY_PATH", "/lib/libtpu.so")  # as libtpu does
  assert not cli.has_tpu(devices, bus)


@pytest.mark.parametrize("name", ["accel0", "vfio/0"])
def test_a_device_file_of_an_accelerator_may_be_a_tpu(machine, name):
  devices, bus = machine
  (devices / name).parent.mkdir(exist_ok=True)
  (devices / name).touch()
  assert cli.has_tpu(devices, bus)


def test_a_google_accelerator_on_the_pci_bus_is_a_tpu(machine):
  devices, bus = machine
  plug(bus, "0x1ae0", "0x120000")
  assert cli.has_tpu(devices, bus)


@pytest.mark.parametrize("name", ["TPU_WORKER_ID", "JAX_FORCE_TPU_INIT"])
def test_environment_variables_of_a_tpu_are_trusted(machine, monkeypatch, name):
  monkeypatch.setenv(name, "0")
  assert cli.has_tpu(*machine)


def test_a_chosen_platform_is_left_alone(monkeypatch):
  calls = []
  monkeypatch.setattr(
    cli.backend, "register_backend_factory", lambda *a, **k: calls.append(a)
  )
  monkeypatch.setattr(cli, "has_tpu", lambda: False)
  before = jax.config.jax_platforms
  try:
    jax.config.update("jax_platforms", "tpu")
    cli.skip_absent_tpu()
    assert not calls
    jax.config.update("jax_platforms", None)
    cli.skip_absent_tpu()
    assert len(calls) == 1
  finally:
    jax.config.update("jax_platforms", before)


def test_a_user_without_a_home_folder_has_no_cache(monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)
  try:
    jax.config.update("jax_compilation_cache_dir", None)
    cli.setup_jax()
    assert jax.config.jax_compilation_cache_dir is None
  finally:
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
  ("configured", "variable", "expected"),
  [
    (None, None, os.path.expanduser(cli.CACHE)),
    ("/own", None, "/own"),
    (None, "", None),  # JAX reads the variable when it is imported
    (None, "/named", None),
  ],
)
def test_compiled_programs_are_kept_unless_the_user_says_otherwise(
  monkeypatch, configured, variable, expected
):
  directory = "jax_compilation_cache_dir"
  if variable is None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  else:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", variable)
  before = getattr(jax.config, directory)
  try:
    jax.config.update(directory, configured)
    cli.setup_jax()
    assert getattr(jax.config, directory) == expected
  finally:
    jax.config.update(directory, before)


@pytest.mark.parametrize(
  ("script", "name"),
  [
    ("/usr/bin/ovi-train", "ovi-train"),
    ("train.py", "train"),
    ("/lib/ovi_jax/curation/__main__.py", "curation"),
  ],
)
def test_errors_name_the_command_that_was_typed(script, name, monkeypatch):
  monkeypatch.setattr(sys, "argv", [script, "--config=nothing"])
  assert interrupts.command_name() == name


def test_commands_are_named_as_they_are_typed_here(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert cli.invocation("ovi-convert") == "python convert_torch_weights.py"
  monkeypatch.chdir(tmp_path)
  assert cli.invocation("ovi-convert") == "ovi-convert"
  (tmp_path / "train.py").touch()  # somebody else's
  assert cli.invocation("ovi-train") == "ovi-train"
  (tmp_path / "sample.py").symlink_to(ROOT / "sample.py")
  assert cli.invocation("ovi-sample") == "python sample.py"


def test_help_of_a_script_shows_its_commands_and_flags():
  done = subprocess.run(
    [sys.executable, "train.py", "--help"],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert "python train.py --config=small --workdir=DIR" in done.stdout
  for flag in ("--config:", "--workdir:", "--aot:"):
    assert flag in done.stdout
  assert "--helpfull" not in done.stdout
  assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def words(monkeypatch) -> list[str]:
  """The words of a command line, for `cli.run` without flags."""
  given = ["tool.py"]

  def run(main, flags_parser):
    del flags_parser
    main(given)
    sys.exit(0)

  monkeypatch.setattr(cli.app, "run", run)
  monkeypatch.setattr(sys, "argv", given)
  return given


@pytest.mark.parametrize("name", ["", "second"])
def test_a_word_chooses_the_function_of_a_command(words, name):
  words += [name] if name else []
  called = []
  with pytest.raises(SystemExit):
    second = {"second": lambda: called.append("second")}
    cli.run(lambda: called.append(""), second)
  assert called == [name]


@pytest.mark.parametrize(
  ("given", "options", "line"),
  [
    (
      ["third"],
      {"subcommands": {"second": print}},
      "unexpected argument 'third'; commands are second",
    ),
    (
      ["A red ball", "rolls\x1b"],
      {"hint": "pass a prompt as --prompt=TEXT"},
      "unexpected argument 'A red ball rolls\\x1b'; pass a prompt as"
      " --prompt=TEXT",
    ),
    (["x"], {}, "unexpected argument 'x'; --help lists the flags"),
  ],
)
def test_an_unexpected_word_is_refused_in_one_line(
  given, options, line, words, capfd
):
  words += given
  with pytest.raises(SystemExit) as ended:
    cli.run(print, **options)
  assert ended.value.code == 1
  assert capfd.readouterr().err == f"tool: {line}\n"


@pytest.mark.parametrize(
  ("argument", "line"),
  [
    (
      "--count=1e3",
      "flag --count=1e3: expected a whole number, got '1e3'",
    ),
    ("--share=x", "flag --share=x: expected a number, got 'x'"),
    (
      "--config.num_steps=1e3",
      "flag --config.num_steps=1e3: expected a whole number, got '1e3'",
    ),
    (
      "--kind=c",
      "flag --kind=c: value should be one of <a|b>",
    ),
    ("--cuont=1", "Unknown command line flag 'cuont'. Did you mean: count ?"),
  ],
)
def test_an_error_of_a_flag_is_one_line(argument, line, capfd, monkeypatch):
  # Read when the flag of a config is defined.
  monkeypatch.setattr(sys, "argv", ["tool.py", argument])
  values = flags.FlagValues()
  flags.DEFINE_integer("count", 0, "", flag_values=values)
  flags.DEFINE_float("share", 0, "", flag_values=values)
  flags.DEFINE_enum("kind", "a", ["a", "b"], "", flag_values=values)
  config = ml_collections.ConfigDict({"num_steps": 1})
  config_flags.DEFINE_config_dict("config", config, flag_values=values)
  monkeypatch.setattr(cli.console, "setup", lambda: None)
  monkeypatch.setattr(cli, "setup_jax", lambda: None)
  monkeypatch.setattr(sys, "excepthook", sys.excepthook)
  monkeypatch.setattr(cli.flags, "FLAGS", values)
  with pytest.raises(SystemExit) as ended:
    cli.parse_flags(sys.argv)
  assert ended.value.code == 1
  said = capfd.readouterr().err
  assert said == f"tool: {line}; --help lists the flags\n"


def test_a_compilation_cache_that_cannot_be_used_is_one_line(
  capfd, monkeypatch
):
  monkeypatch.setattr(cli.console, "setup", lambda: None)
  monkeypatch.setattr(sys, "excepthook", sys.excepthook)
  directory = "jax_compilation_cache_dir"
  before = getattr(jax.config, directory)
  try:
    jax.config.update(directory, "htp://x")
    with pytest.raises(SystemExit) as ended:
      cli.parse_flags(["tool.py"])
  finally:
    jax.config.update(directory, before)
  assert ended.value.code == 1
  said = capfd.readouterr().err
  assert "htp://x: unknown scheme" in said and said.count("\n") == 1


def test_an_error_of_a_command_is_one_line(words, capfd):
  def fail():
    raise ValueError("too small")

  with pytest.raises(SystemExit) as ended:
    cli.run(fail)
  assert ended.value.code == 1
  assert capfd.readouterr().err == "tool: too small\n"


@pytest.mark.parametrize(
  ("typed", "read"),
  [
    ("--place=~/a b", "/home/me/a b"),
    ("-place=~", "/home/me"),
    ("--place=~/a,~/b~,/c/~/d", "/home/me/a,/home/me/b~,/c/~/d"),
    ("--place=~other/a", "~other/a"),
    ("--place=a/~/b", "a/~/b"),
    ("--place=", ""),
  ],
)
def test_paths_of_flags_may_begin_with_the_home_folder(
  typed, read, monkeypatch
):
  monkeypatch.setenv("HOME", "/home/me")
  values = flags.FlagValues()
  flags.DEFINE_string("place", "x", "", flag_values=values)
  monkeypatch.setattr(flags, "FLAGS", values)
  cli.parse_flags(["command", typed])
  assert values.place == read


@pytest.mark.parametrize("name", ["prompt", "config.negative_prompt.video"])
def test_a_prompt_that_begins_with_a_tilde_is_left_as_it_is(name, monkeypatch):
  values = flags.FlagValues()
  flags.DEFINE_string(name, "", "", flag_values=values)
  monkeypatch.setattr(flags, "FLAGS", values)
  cli.parse_flags(["command", f"--{name}=~/ waves"])
  assert values[name].value == "~/ waves"
