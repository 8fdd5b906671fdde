"""Fetch the released weights from the Hugging Face hub.

Needs the `hub` extra. What was fetched before is not fetched again, a file cut
off is resumed, and nothing starts that would not fit on the disk. (Repositories
and names: the original's `download_weights.py`; Wan2.2-TI2V-5B's own page for
the transformer that training starts from.)
"""

import contextlib
import dataclasses
import fnmatch
import importlib
import logging
import os
import pathlib
import re
import shutil
import sys
import urllib.parse
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

from ovi_jax import geometry
from ovi_jax import network
from ovi_jax.convert import release as releases
from ovi_jax.convert import staging

_log = logging.getLogger(__name__)
_TRANSPORT = re.compile(r"httpx\d*")
_ERROR = 300  # characters of an error that are shown
_WAN = "Wan-AI/Wan2.2-TI2V-5B"
_MMAUDIO = "hkchengrex/MMAudio"
_OVI = "chetwinlow1/Ovi"
_DREAMID = "XuGuo699/DreamID-Omni"
# Where the files of a repository go.
_DIRECTORIES = {
  _WAN: "Wan2.2-TI2V-5B",
  _MMAUDIO: "MMAudio",
  _OVI: "Ovi",
  _DREAMID: "DreamID_Omni",
}
_SHARED = (
  (_WAN, "Wan2.2_VAE.pth"),
  (_WAN, "models_t5_umt5-xxl-enc-bf16.pth"),
  (_WAN, "google/umt5-xxl/*"),
  (_MMAUDIO, "ext_weights/v1-16.pth"),
  (_MMAUDIO, "ext_weights/best_netG.pt"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
  """A file to fetch.

  Attributes:
    repo: of the hub.
    name: in the repository; may be a pattern until the hub was asked.
    size: bytes, or None until the hub was asked.
  """

  repo: str
  name: str
  size: int | None = None

  def under(self, out_dir: pathlib.Path) -> pathlib.Path:
    """Where it goes, in the layout that the converter reads."""
    return out_dir / _DIRECTORIES[self.repo] / self.name


def plan(variant: str) -> list[File]:
  """What a variant needs: its own weights and what all variants share.

  Args:
    variant: of `release.known_variants`; `release.WAN` is the video
      transformer alone.

  Raises:
    ValueError: there is no such variant.
  """
  if variant == releases.WAN:
    return [File(repo=_WAN, name="diffusion_pytorch_model*")]
  if variant == releases.DREAMID:
    own = (_DREAMID, pathlib.PurePath(releases.DREAMID_CHECKPOINT).name)
  else:
    own = (_OVI, geometry.variant(variant).checkpoint)
  return [File(repo=repo, name=name) for repo, name in (own, *_SHARED)]


def download(
  variant: str,
  out_dir: str | os.PathLike[str],
  confirm: Callable[[str], bool] = lambda question: True,
  hub: Any = None,
) -> list[pathlib.Path]:
  """Fetch a variant into the layout that the converter reads.

  Args:
    variant: as for `plan`.
    out_dir: the directory that will hold `Ovi`, `Wan2.2-TI2V-5B`, `MMAudio`.
    confirm: asked once, with what it will take, before anything is fetched.
    hub: used in place of the `huggingface_hub` package.

  Returns:
    The files of the variant, now all there; nothing if `confirm` said no.

  Raises:
    ValueError: no such variant, `out_dir` is a file, no `huggingface_hub`, a
      file is gone from its repository, or came in another size than announced.
    OSError: the disk has no room, or the hub cannot be reached or refuses; run
      the command again to resume the download.
  """
  wanted = plan(variant)
  out_dir = pathlib.Path(out_dir)
  staging.check_folder(out_dir)
  hub = hub or _hub()
  files = _on_hub(hub, wanted)
  absent = [f for f in files if not _is_whole(f, out_dir)]
  there = len(files) - len(absent)
  _log.info(f"{variant}: {len(files)} files, of which {there} are there")
  if absent:
    need = _check_room(absent, out_dir)
    if not confirm(f"Fetch {_gib(need)} to {out_dir}?"):
      return []
  for file in absent:
    _log.info(f"fetching {file.repo}/{file.name}, {_gib(file.size or 0)}")
    _fetch(hub, file, out_dir)
  return [f.under(out_dir) for f in files]


def _fetch(hub: Any, file: File, out_dir: pathlib.Path) -> None:
  """Fetch one file, or what is missing of it."""
  with _named(hub, f"fetching {file.name} of {file.repo}"):
    hub.hf_hub_download(
      repo_id=file.repo,
      filename=file.name,
      local_dir=out_dir / _DIRECTORIES[file.repo],
    )
  if not _is_whole(file, out_dir):
    raise ValueError(
      f"expected {file.size} bytes at {file.under(out_dir)}, found another"
      " size; delete the file and download again"
    )


@contextlib.contextmanager
def _named(hub: Any, what: str) -> Iterator[None]:
  """Any failure of the hub or the network as one OSError that says at what."""
  try:
    yield
  except ImportError as error:
    raise OSError(
      f"{what} from {_host(hub)} failed: {network.missing_package(error)}"
    ) from error
  except _failures(hub) as error:
    found = network.shown(error, _ERROR, hub=True)
    raise OSError(
      f"{what} from {_host(hub)} failed: {type(error).__name__}: {found}; check"
      f" the network and run again, it resumes{network.settings_hint(hub=True)}"
    ) from None  # a traceback may quote the address of a proxy


def _host(hub: Any) -> str:
  """The address of the hub, without what a user may have added to it."""
  try:
    address = urllib.parse.urlsplit(str(getattr(hub.HfApi(), "endpoint", "")))
    host = address.hostname
  except ValueError:
    return "the hub"
  # A `/`, `?` or `#` in a password ends what is taken for the host.
  ambiguous = "@" in address.path + address.query + address.fragment
  return "the hub" if ambiguous or not host else host


def _failures(hub: Any) -> tuple[type[Exception], ...]:
  """The errors of the hub's package and of what it reaches the network by.

  requests' are OSErrors, those of httpx and its successors (httpx2, …) are
  not; its transfer program (hf_xet) raises RuntimeError.
  """
  own = getattr(getattr(hub, "errors", None), "HfHubHTTPError", None)
  transports = [
    getattr(module, error, None)
    for name, module in list(sys.modules.items())
    if _TRANSPORT.fullmatch(name)
    for error in ("HTTPError", "InvalidURL")
  ]
  others = (e for e in (own, *transports) if e is not None)
  return (OSError, ValueError, RuntimeError, *others)


def _hub() -> Any:
  """The optional package."""
  try:
    hub = importlib.import_module("huggingface_hub")
    _ = hub.HfApi  # imports the part that reads the environment
  except ImportError as error:
    raise ValueError(
      "downloading needs the package huggingface_hub; in a clone of"
      " ovi_jax: pip install -e '.[hub]'"
    ) from error
  except ValueError as error:
    found = network.shown(error, _ERROR, hub=True)
    raise ValueError(
      f"huggingface_hub cannot be used: {found}"
      f"{network.settings_hint(hub=True)}"
    ) from None
  return hub


def _on_hub(hub: Any, wanted: list[File]) -> list[File]:
  """The files with their sizes, patterns replaced by what they match."""
  api = hub.HfApi()
  files: list[File] = []
  for repo in dict.fromkeys(f.repo for f in wanted):
    names = ", ".join(f.name for f in wanted if f.repo == repo)
    with _named(hub, f"asking for {names} of {repo}"):
      siblings = api.model_info(repo, files_metadata=True).siblings or []
    for pattern in (f.name for f in wanted if f.repo == repo):
      found = [s for s in siblings if fnmatch.fnmatchcase(s.rfilename, pattern)]
      if not found or any(s.size is None for s in found):
        raise ValueError(
          f"expected {pattern} with its size in {repo} of the hub, found"
          f" {[s.rfilename for s in found] or 'no such file'}"
        )
      files += [File(repo=repo, name=s.rfilename, size=s.size) for s in found]
  return files


def _check_room(absent: list[File], out_dir: pathlib.Path) -> int:
  """The bytes to fetch; an error if the disk has no room for them."""
  need = sum(f.size or 0 for f in absent)
  existing = out_dir.absolute()
  while not existing.exists():
    existing = existing.parent
  free = shutil.disk_usage(existing).free
  _log.info(f"to fetch: {_gib(need)}; free in {existing}: {_gib(free)}")
  # What was fetched of a file cut off counts again: ask for too much, rather.
  if need > free:
    raise OSError(
      f"expected {_gib(need)} free in {existing}, found {_gib(free)}; make room"
      " or use another directory"
    )
  return need


def _is_whole(file: File, out_dir: pathlib.Path) -> bool:
  """Whether the file is there in its full size."""
  path = file.under(out_dir)
  return path.is_file() and path.stat().st_size == file.size


def _gib(size: int) -> str:
  return f"{size / 2**30:.1f} GiB"
