"""Sphinx extension: writes the reference pages that are derived from code.

Before a build it writes `reference/generated/`: fields of the configs (defaults
from the config files; meanings from the `Attributes:` sections of the
dataclasses that hold them and from comments in the config files), flags of the
commands, and a page of docstrings for each package.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import pathlib
import re
import runpy
import sys
import textwrap
import types
import typing
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from unittest import mock

from absl import app as absl_app
from absl import flags
from sphinx.domains.python import _object as python

from ovi_jax import cli
from ovi_jax.modality import AV

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = "reference/generated"
# Packages and modules with a page of their docstrings.
API = (
  "modality",
  "geometry",
  "prompt",
  "models",
  "attention",
  "diffusion",
  "sampling",
  "pretrained",
  "convert",
  "data",
  "training",
  "sharding",
  "checkpoint",
  "aot",
  "curation",
)
# Of curation, what a new stage or a reader of its output needs.
CURATION = ("clip", "stage", "engine.settings", "stages")
# Programs for maintainers, which read no flags.
NO_COMMANDS = ("ovi_jax.convert.standin.write", "ovi_jax.models.shapes")


def pages() -> dict[str, str]:
  """The pages, by file name within `OUT`."""
  return {
    **{f"config_{n}.md": config_page(n, f()) for n, f in CONFIGS.items()},
    "commands.md": commands_page(),
    **{f"api/ovi_jax.{name}.rst": api_page(name) for name in API},
  }


# Configs.


class Field(typing.NamedTuple):
  """A field of a config: dotted path, default, meaning in Markdown."""

  path: str
  default: Any
  meaning: str


def default_config() -> types.ModuleType:
  """The module with the values that all training configs begin with."""
  fusion = importlib.import_module("configs.fusion")
  return next(m for m in vars(fusion).values() if hasattr(m, "training"))


def train_fields() -> list[Field]:
  from ovi_jax.training import settings

  config = default_config().training(video=True, audio=True)
  notes = comments(_source(default_config()), "training")
  return describe(config.to_dict(), settings.Settings, notes)


def codec_fields(name: str) -> list[Field]:
  from ovi_jax.training import settings

  config = importlib.import_module(f"configs.{name}").get_config()
  given = config.copy_and_resolve_references()
  given.data.tokenizer = "tokenizer.json"  # needed by the text encoder
  chosen = settings.CodecSettings.from_config(given)
  values = config.to_dict()
  model, objective = values.pop("model"), values.pop("objective")
  notes = comments(_source(default_config()), "codec")
  sizes = comments(ROOT / f"configs/{name}.py", "FULL")
  return [
    *describe(values, type(chosen), notes),
    *describe(model, type(chosen.model), sizes, "model."),
    *describe(objective, type(chosen.make_objective("cpu")), {}, "objective."),
  ]


def _source(module: types.ModuleType) -> pathlib.Path:
  assert module.__file__ is not None
  return pathlib.Path(module.__file__)


def sample_fields() -> list[Field]:
  from configs import sample
  from ovi_jax.sampling import settings

  notes = comments(ROOT / "configs/sample.py", "get_config")
  fields = describe(sample.get_config().to_dict(), settings.Settings, notes)
  published = dict(_leaves(settings.DEFAULTS))
  return [f._replace(default=published.get(f.path, f.default)) for f in fields]


def curate_fields() -> list[Field]:
  from configs import curate
  from ovi_jax.curation.engine import settings

  notes = comments(ROOT / "configs/curate.py", "get_config")
  fields: dict[str, Field] = {}
  for kind in ("", "audio"):
    config = curate.get_config(kind).to_dict()
    stages = config.pop("stages")
    found = describe(config, settings.Settings, notes)
    for name, stage in stages.items():
      module = importlib.import_module(f"ovi_jax.curation.stages.{name}")
      found += describe(stage, module.Config, {}, f"stages.{name}.")
    fields = {f.path: f for f in found} | fields
  return sorted(fields.values(), key=lambda f: f.path.startswith("stages."))


# Pages of fields, by the config file that makes them.
CONFIGS: Mapping[str, Callable[[], list[Field]]] = {
  "sample": sample_fields,
  "train": train_fields,
  **{
    name: functools.partial(codec_fields, name)
    for name in ("codec_video", "codec_audio", "codec_vocoder", "codec_text")
  },
  "curate": curate_fields,
}


def describe(
  config: Mapping[str, Any], cls: type, notes: Mapping[str, str], prefix=""
) -> list[Field]:
  """The fields of a config with what dataclass and comments say of them.

  Args:
    config: values, nested by name.
    cls: dataclass that the config becomes.
    notes: comments by dotted path.
    prefix: of all paths.
  """
  return [
    Field(prefix + path, value, _meaning(path.split("."), cls, notes))
    for path, value in _leaves(config)
  ]


def _leaves(config: Mapping[str, Any], at="") -> Iterator[tuple[str, Any]]:
  for name, value in config.items():
    if isinstance(value, Mapping) and value:
      yield from _leaves(value, f"{at}{name}.")
    else:
      yield at + name, value


def _meaning(parts: list[str], cls: type, notes: Mapping[str, str]) -> str:
  """Documentation of a field: its own, a comment, or what its group has."""
  own, group, here = "", "", [cls]
  for part in parts:
    fields = dict(field for c in here for field in _documented(c).items())
    own, hint = fields.get(part, ("", None))
    group = own or group
    here = here if part in AV._fields else _dataclasses(hint)
  return own or notes.get(".".join(parts), group)


def _documented(cls: type) -> dict[str, tuple[str, Any]]:
  """A dataclass's fields: what its docstring says of each, and its type.

  Fields of a dataclass are also found under the class that holds it, because
  configs have some of them at the top.
  """
  hints = typing.get_type_hints(cls)
  docs = {}
  for base in reversed(cls.__mro__):
    docs |= attributes(inspect.cleandoc(base.__doc__ or ""))
  result = {}
  for field in dataclasses.fields(cls):
    hint = hints[field.name]
    if dataclasses.is_dataclass(hint):
      result = _documented(hint) | result  # type: ignore[arg-type]
    result[field.name] = docs.get(field.name, ""), hint
  return result


def _dataclasses(hint: Any) -> list[type]:
  """Dataclasses within a type, such as that of `AV[DiTConfig] | None`."""
  if dataclasses.is_dataclass(hint) and isinstance(hint, type):
    return [hint]
  return [c for inner in typing.get_args(hint) for c in _dataclasses(inner)]


def attributes(doc: str) -> dict[str, str]:
  """What the `Attributes:` section of a docstring says, by name."""
  section = re.search(r"^Attributes:\n((?:(?: .*)?\n?)*)", doc, re.M)
  if not section:
    return {}
  entries = re.split(r"^(\w+): ", textwrap.dedent(section[1]), flags=re.M)
  return {
    name: " ".join(text.split())
    for name, text in zip(entries[1::2], entries[2::2])
  }


def comments(path: pathlib.Path, name: str) -> dict[str, str]:
  """Comments of a config file beside or above its fields, by dotted path.

  Args:
    path: the file.
    name: of the function that makes the config, by assignments to `config` or
      in a dict of dicts, which may have names at the top of the file; or of
      such a dict.
  """
  source = path.read_text("utf-8")
  tree = ast.parse(source)
  lines = source.splitlines()
  named = {
    node.targets[0].id: node.value
    for node in tree.body
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
  }
  where: dict[str, tuple[int, int]] = {}

  def visit(node: Any, at: str) -> None:
    if isinstance(node, ast.Name):
      visit(named.get(node.id), at)
    elif isinstance(node, ast.IfExp):
      visit(node.body, at)
    elif isinstance(node, ast.BinOp):
      visit(node.left, at)
      visit(node.right, at)
    elif isinstance(node, ast.Dict):
      for key, value in zip(node.keys, node.values):
        if isinstance(key, ast.Constant):
          where[f"{at}{key.value}"] = key.lineno, value.end_lineno or 0
          visit(value, f"{at}{key.value}.")

  visit(named.get(name), "")
  functions = [
    node
    for node in tree.body
    if isinstance(node, ast.FunctionDef) and node.name == name
  ]
  for node in (node for body in functions for node in ast.walk(body)):
    if isinstance(node, ast.Call) and "ConfigDict" in ast.unparse(node.func):
      visit(node.args[0] if node.args else None, "")
    elif isinstance(node, ast.Assign):
      targets = re.findall(r"config\.([\w.]+)", ast.unparse(node.targets[0]))
      for target in targets:
        where[target] = node.lineno, node.end_lineno or 0
  found = {path: _comment(lines, *at) for path, at in where.items()}
  return {path: text for path, text in found.items() if text}


def _comment(lines: list[str], first: int, last: int) -> str:
  """The comment behind a statement, or else the lines of comment above it."""
  for number in range(first, last + 1):
    if match := re.search(r"\s# (.+)$", lines[number - 1]):
      return match[1]
  above: list[str] = []
  while match := re.match(r"\s*# (.+)$", lines[first - 2 - len(above)]):
    above.insert(0, match[1])
  return " ".join(above)


def config_page(name: str, fields: list[Field]) -> str:
  """A page on a config in Markdown, a table for each group of fields."""
  groups: dict[str, list[Field]] = {}
  for field in fields:
    group, dot, _ = field.path.rpartition(".")
    if dot and group.count(".") > 1:
      group = ".".join(group.split(".")[:2])
    groups.setdefault(group, []).append(field)
  path = ROOT / f"configs/{name}.py"
  title = f"`configs/{name}.py`"
  if not path.exists():
    title, path = "Training stages", _source(default_config())
  text = [f"# {title}\n", _blocks(ast.parse(path.read_text("utf-8"))), ""]
  for group, members in sorted(groups.items(), key=lambda g: g[0] != ""):
    text.append(f"## `{group}`\n" if group else "## Top level\n")
    text.append("| Field | Default | Meaning |\n| --- | --- | --- |")
    for field in members:
      meaning = field.meaning.replace("|", "\\|")
      meaning = meaning[:1].upper() + meaning[1:]
      text.append(f"| `{field.path}` | {_code(field.default)} | {meaning} |")
    text.append("")
  return "\n".join(text)


def _code(value: Any) -> str:
  shown = repr(value).replace(f"{ROOT}/", "").replace("|", "\\|")
  return f"`{shown}`"


# Commands.

# A flag outside of code: its two dashes would become one.
_FLAG = re.compile(
  r"(?<![`\w-])(--[a-z][\w.]*\w(?:=[\w,.:/'\"-]*\w)?)(?![\w`])"
)


def commands_page() -> str:
  """Usage and flags of every command, in Markdown."""
  sections = [command_page(name, path) for name, path in commands().items()]
  return "\n".join(["# Commands\n", *sections])


def commands() -> dict[str, pathlib.Path]:
  """Files that run as commands, by how they are started."""
  found = {}
  patterns = ("*.py", "ovi_jax/**/*.py", "scripts/**/*.py")
  for path in (p for each in patterns for p in sorted(ROOT.glob(each))):
    if '__name__ == "__main__"' not in path.read_text("utf-8"):
      continue
    inside = path.relative_to(ROOT).with_suffix("")
    module = ".".join(inside.parts).removesuffix(".__main__")
    if len(inside.parts) == 1:
      found[f"python {path.name}"] = path
    elif module not in NO_COMMANDS:
      found[f"python -m {module}"] = path
  return found


def command_page(command: str, path: pathlib.Path) -> str:
  """Usage and flags of a command, in Markdown."""
  source, found = command_flags(path)
  if source.parent.name == "commands":
    command = f"ovi-{source.stem}`, in a clone `{command}"
  text = [f"## `{command}`\n", _blocks(ast.parse(source.read_text("utf-8")))]
  if found:
    text.append("\n| Flag | Default | Meaning |\n| --- | --- | --- |")
  for flag in found:
    choices = getattr(flag.parser, "enum_values", None)
    meaning = re.sub(r"^<.*?>: ", "", flag.help or "").replace("|", "\\|")
    meaning = _FLAG.sub(r"`\1`", meaning)
    if choices:
      shown = ", ".join(f"`{c}`" if c else "empty" for c in choices)
      meaning += f" One of: {shown}."
    default = _code(flag.default)
    if hasattr(type(flag), "config_filename"):
      file = getattr(flag, "config_filename", "") if flag.default else ""
      default = _code(file) if file else ""
      meaning = f"Config file; `--{flag.name}.FIELD=VALUE` sets a field."
    text.append(f"| `--{flag.name}` | {default} | {meaning} |")
  return "\n".join(text) + "\n"


def _blocks(module: ast.Module) -> str:
  """Markdown of a docstring: its indented lines become blocks of code."""
  doc = ast.get_docstring(module, clean=False) or ""
  doc = re.sub(r"(?m)^(?! {2}).*", lambda m: _FLAG.sub(r"`\1`", m[0]), doc)
  return re.sub(
    r"((?:^ {2,}.*\n?)+)",
    lambda m: f"\n```text\n{textwrap.dedent(m[1]).rstrip()}\n```\n\n",
    doc + "\n",
    flags=re.M,
  ).strip()


def command_flags(path: pathlib.Path) -> tuple[pathlib.Path, list[flags.Flag]]:
  """Run a file as a command, as far as its flags.

  Returns:
    The file that explains the command (`path`, or the one of its main function
    in ovi_jax/commands/), and the flags that files of ours define.
  """
  source, found = path, dict[str, flags.Flag]()

  def run(main: Any, subcommands: Any = None, **kwargs: Any) -> None:
    nonlocal source
    del subcommands, kwargs
    home = pathlib.Path(main.__code__.co_filename)
    source = home if home.parent.name == "commands" else path
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
      if module == str(path) or module.startswith(("ovi_jax", "scripts")):
        found.update({flag.name: flag for flag in defined})
    raise SystemExit

  try:
    with (
      mock.patch.object(absl_app, "run", run),
      mock.patch.object(cli, "run", run),
      mock.patch.object(sys, "argv", [str(path)]),
      contextlib.suppress(SystemExit),
    ):
      runpy.run_path(str(path), run_name="__main__")
  finally:
    for name in found:
      delattr(flags.FLAGS, name)
  return source, list(found.values())


# Docstrings.


def modules(name: str) -> list[str]:
  """Names of the modules of a package of ovi_jax, the package first."""
  path = ROOT / "ovi_jax" / name.replace(".", "/")
  if not path.is_dir():
    return [f"ovi_jax.{name}"]
  if name == "curation":
    inner = [m for part in CURATION for m in modules(f"curation.{part}")]
    return ["ovi_jax.curation", *inner]
  result = [f"ovi_jax.{name}"]
  for inner in sorted(path.iterdir()):
    if inner.suffix == ".py" and not inner.stem.startswith("_"):
      result.append(f"ovi_jax.{name}.{inner.stem}")
    elif (inner / "__init__.py").exists():
      result += modules(f"{name}.{inner.name}")
  return result


def api_page(name: str) -> str:
  """A page of the docstrings of a package or module, in reStructuredText."""
  first, *rest = modules(name)
  text = [first, "=" * len(first), "", f".. automodule:: {first}", ""]
  for module in rest:
    text += [module, "-" * len(module), "", f".. automodule:: {module}", ""]
  return "\n".join(text)


# A name in backticks with a letter behind it, as in `Row`s; a bar, as in |x|.
_INVALID = re.compile(r"(`[^`]+`)([\w²]?)|\|")


def _valid(match: re.Match[str]) -> str:
  """What reStructuredText reads as the text that was meant."""
  if not match[1]:
    return "\\|"
  return f"{match[1]}\\ {match[2]}" if match[2] else match[1]


def _code_block(match: re.Match[str]) -> str:
  """Indented lines as a block of code, if they are not a directive's."""
  if match.string[: match.start()].rstrip().endswith("::"):
    return match[0]
  code = textwrap.indent(textwrap.dedent(match[0]).strip("\n"), "  ")
  return f"\n.. code-block:: text\n\n{code}\n\n"


def tidy_docstring(app, what, name, obj, options, lines: list[str]) -> None:
  """Make valid reStructuredText of a docstring.

  Indented lines of a module's docstring become blocks of code.
  """
  del app, name, options
  if what in ("attribute", "property"):
    # Napoleon would read what is before a colon as the type.
    lines[:] = [line.replace(": ", " -- ") for line in lines]
  if what != "module":
    lines[:] = _INVALID.sub(_valid, "\n".join(lines)).split("\n")
    return
  # `lines` have lost their indentation where every line had it.
  text = re.sub(
    r"(?m)^(?! {2}).+$",
    lambda match: _INVALID.sub(_valid, match[0]),
    obj.__doc__ or "",
  )
  text = re.sub(r"(?m)(?:^ {2,}.*\n?|^\n(?= {2}))+", _code_block, text)
  lines[:] = text.split("\n")


def tidy_signature(
  app, what, name, obj, options, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
  """Leave out the arguments that Flax adds, and defaults that are no code."""
  del app, what, name, obj, options
  if signature:
    signature = re.sub(r", parent: .*\)$", ")", signature)
    signature = re.sub(r" = <.*?>(?=[,)])", " = ...", signature)
  return signature, returns


def skip_member(app, what, name, obj, skip, options) -> bool | None:
  """Leave out fields of named tuples, which the class's docstring explains."""
  del app, what, name, skip, options
  return True if type(obj).__name__ == "_tuplegetter" else None


def write(app: Any) -> None:
  """Write the pages into the source folder, and remove outdated ones."""
  out = pathlib.Path(app.srcdir) / OUT
  made = pages()
  for path in out.rglob("*.*"):
    if str(path.relative_to(out)) not in made:
      path.unlink()
  for name, text in made.items():
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text("utf-8") != text:
      path.write_text(text, "utf-8")


def setup(app: Any) -> dict[str, Any]:
  app.connect("builder-inited", write)
  app.connect("autodoc-process-docstring", tidy_docstring, priority=400)
  app.connect("autodoc-process-signature", tidy_signature)
  app.connect("autodoc-skip-member", skip_member)
  for field in python.PyObject.doc_field_types:
    if field.name == "variable":
      field.label = "Attributes"  # as docstrings have it
  return {"parallel_read_safe": True}
