"""What `convert_torch_weights.py` does with its flags."""

import contextlib
import pathlib
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from ovi_jax import files
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.convert import convert
from ovi_jax.convert import download as downloads
from ovi_jax.convert import reader
from ovi_jax.convert import release as releases
from ovi_jax.models import architecture
from ovi_jax.pretrained import weights_dir

VARIANTS = ", ".join(releases.known_variants())


def run(*, out: str, **flags: Any) -> None:
  """Convert, export or download, as the flags say.

  Args:
    out: the directory to write.
    **flags: the other flags by name, as `--help` describes them; those that are
      empty or left out are not given.

  Raises:
    ValueError: flags that are missing or contradict each other, or whatever
      the work itself finds wrong.
    OSError: nothing can be written.
  """
  if not out:
    raise ValueError("--out=DIR is needed: the directory to write")
  _check(flags)
  for name in ("release", "arch", "weights", "tokenizer"):
    _check_local(name, flags.get(name, ""))
  release, variant, arch, weights, download = (
    flags.get(name, "")
    for name in ("release", "variant", "arch", "weights", "download")
  )
  components = flags.get("components") or None
  named = {
    c: files.listed(flags[c], _is_there)
    for c in architecture.COMPONENTS
    if flags.get(c)
  }
  for component, names in named.items():
    for each in names:
      _check_local(component, convert.place(each)[0])
  if download:
    downloads.download(download, storage.local(out))
  elif flags.get("export"):
    source = weights or release
    if not source:
      raise ValueError("--export needs --weights=DIR of converted weights")
    convert.export(storage.local(source), storage.local(out), components)
  else:
    if not release and not named:
      raise ValueError(
        "--release=DIR is needed: the directory to convert; or a file of a"
        " component, such as --fusion=FILE"
      )
    if bool(variant) == bool(arch):
      raise ValueError(
        f"pass one of --variant=NAME ({VARIANTS}) and --arch=FILE"
      )
    folder = pathlib.Path(release) if release else None
    if folder is not None and not folder.is_dir():
      raise ValueError(f"--release={release} is not a directory")
    if folder is not None and _is_converted(folder):
      raise ValueError(
        f"--release={release} holds weights that are converted already;"
        " --export --weights=DIR is the way back"
      )
    with _local_folder(out) as target:
      convert.convert(
        folder,
        target,
        variant=variant or None,
        sizes=_sizes(variant, arch, (*(components or ()), *named)),
        components=components,
        files=named,
        tokenizer=_tokenizer(flags.get("tokenizer", "")),
        quantize=flags.get("quantize", ""),
      )


@contextlib.contextmanager
def _local_folder(out: str) -> Iterator[pathlib.Path]:
  """The local folder of that name, or one that is uploaded to a store.

  Raises:
    ValueError: a folder of a store holds weights already.
    OSError: the store cannot be used.
  """
  target = storage.locate(out)
  if isinstance(target, pathlib.Path):
    yield target
    return
  storage.check_access(target)
  if storage.exists(target / weights_dir.MANIFEST):
    raise ValueError(f"{out} holds weights already; choose another --out")
  with storage.spool() as folder:
    yield folder
    storage.upload_folder(folder, target, last=weights_dir.MANIFEST)


def _is_converted(folder: pathlib.Path) -> bool:
  """Whether a directory holds our weights and no release."""
  return (folder / weights_dir.MANIFEST).is_file() and not any(
    (folder / name).is_dir() for name in releases.FOLDERS
  )


def _check_local(flag: str, value: str) -> None:
  """ValueError for a URL: what is converted is read on this machine."""
  try:
    storage.local(value)
  except ValueError as error:
    raise ValueError(f"--{flag}: {error}") from error


def _is_there(name: str) -> bool:
  """Whether there is a FILE, or FILE::KEY, of that name."""
  path, key = convert.place(name)
  return "," not in key and reader.exists(path)


def _tokenizer(value: str) -> pathlib.Path | None:
  """The file that `--tokenizer` names, or the one in a directory."""
  if not value:
    return None
  path = pathlib.Path(value)
  if path.is_dir():
    path /= weights_dir.TOKENIZER
    if not path.is_file():
      raise ValueError(f"--tokenizer={value}: has no {weights_dir.TOKENIZER}")
  if not path.is_file():
    raise ValueError(f"--tokenizer={value}: no such file")
  return path


def _check(flags: Mapping[str, Any]) -> None:
  """Refuse flags of two tasks at once: none is ignored.

  Raises:
    ValueError: names the flags that contradict each other.
  """
  given = [name for name, value in flags.items() if value]
  if flags.get("download"):
    task, allowed = "download", {"download"}
  elif flags.get("export"):
    task, allowed = "export", {"export", "weights", "components"}
    if not flags.get("weights"):
      allowed.add("release")
  else:
    task, allowed = "", {"release", "variant", "arch", "components"}
    allowed |= {"tokenizer", "quantize", *architecture.COMPONENTS}
  if odd := [f"--{name}" for name in given if name not in allowed]:
    what = f"--{task}" if task else "a conversion (no --export)"
    raise ValueError(f"{what} does not go with {', '.join(odd)}")


def _sizes(
  variant: str, arch: str, components: Iterable[str]
) -> Mapping[str, Any]:
  """The architecture that the flags name, in the original's form.

  Args:
    variant: by name, or empty.
    arch: file of sizes, or empty.
    components: that are named; the bare video model has no others.
  """
  if variant:
    if variant not in releases.known_variants():
      raise ValueError(
        f"variant {variant!r} is unknown; choose from {VARIANTS}"
      )
    sizes = releases.sizes_of(variant)
    if variant == releases.WAN:
      keys = {"umt5": "t5", "video_vae": "video_vae"}
      named = {keys[c]: sizes[keys[c]] for c in components if c in keys}
      return {"fusion": {"video": sizes["fusion"]["video"]}, **named}
    return sizes
  path = pathlib.Path(arch)
  if not path.is_file():
    raise ValueError(f"--arch={arch}: no such file")
  try:
    sizes = untrusted.read_json(path)
  except ValueError as error:
    raise ValueError(f"--arch={arch}: {error}") from error
  if not isinstance(sizes, dict):
    raise ValueError(f"--arch={arch} must hold sizes by name")
  # A whole manifest is as good as its `config`.
  return sizes.get("config", sizes)
