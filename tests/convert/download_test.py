"""Downloading the release, from a fake hub."""

import collections
import dataclasses
import pathlib
import shutil
import sys
import traceback
import types

import pytest

from ovi_jax import geometry
from ovi_jax.convert import download
from ovi_jax.convert import release as releases
from tests.lib import network_settings

RELEASE = {
  "chetwinlow1/Ovi": {
    "model.safetensors": 40,
    "model_960x960.safetensors": 41,
    "model_960x960_10s.safetensors": 42,
    "README.md": 1,
  },
  "Wan-AI/Wan2.2-TI2V-5B": {
    "Wan2.2_VAE.pth": 20,
    "models_t5_umt5-xxl-enc-bf16.pth": 30,
    "google/umt5-xxl/tokenizer.json": 5,
    "google/umt5-xxl/spiece.model": 6,
    "diffusion_pytorch_model-00001-of-00002.safetensors": 50,
    "diffusion_pytorch_model-00002-of-00002.safetensors": 51,
    "diffusion_pytorch_model.safetensors.index.json": 2,
    "examples/i2v.jpg": 1,
  },
  "hkchengrex/MMAudio": {
    "ext_weights/v1-16.pth": 10,
    "ext_weights/best_netG.pt": 11,
    "weights/mmaudio_large.pth": 1,
  },
}
FILES_720 = {
  "Ovi/model.safetensors": 40,
  "Wan2.2-TI2V-5B/Wan2.2_VAE.pth": 20,
  "Wan2.2-TI2V-5B/models_t5_umt5-xxl-enc-bf16.pth": 30,
  "Wan2.2-TI2V-5B/google/umt5-xxl/tokenizer.json": 5,
  "Wan2.2-TI2V-5B/google/umt5-xxl/spiece.model": 6,
  "MMAudio/ext_weights/v1-16.pth": 10,
  "MMAudio/ext_weights/best_netG.pt": 11,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hub:
  """As much of `huggingface_hub` as is used."""

  repos: dict = dataclasses.field(default_factory=lambda: RELEASE)
  fetched: list = dataclasses.field(default_factory=list)
  short: int = 0  # bytes that never arrive

  def HfApi(self):
    return self

  def model_info(self, repo_id, *, files_metadata):
    assert files_metadata
    sizes = self.repos[repo_id]
    siblings = [
      types.SimpleNamespace(rfilename=n, size=s) for n, s in sizes.items()
    ]
    return types.SimpleNamespace(siblings=siblings)

  def hf_hub_download(self, *, repo_id, filename, local_dir):
    path = pathlib.Path(local_dir) / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * (self.repos[repo_id][filename] - self.short))
    self.fetched.append(filename)
    return str(path)


def sizes(out_dir):
  return {
    str(p.relative_to(out_dir)): p.stat().st_size
    for p in out_dir.rglob("*")
    if p.is_file()
  }


def test_the_layout_is_that_of_the_release(tmp_path):
  hub = Hub()
  paths = download.download("720x720_5s", tmp_path, hub=hub)
  assert sizes(tmp_path) == FILES_720
  assert {str(p.relative_to(tmp_path)) for p in paths} == set(FILES_720)


def test_each_variant_has_its_own_checkpoint():
  for name, variant in geometry.VARIANTS.items():
    files = download.plan(name)
    own = [f.name for f in files if f.repo == "chetwinlow1/Ovi"]
    assert own == [variant.checkpoint]
    assert len(files) == 6 and all(f.size is None for f in files)
  own, *shared = download.plan(releases.DREAMID)
  assert shared == download.plan("720x720_5s")[1:]
  assert own.under(pathlib.Path("a")) == pathlib.Path(
    "a/DreamID_Omni/dreamid_omni.safetensors"
  )
  with pytest.raises(ValueError, match=r"1080p.*960x960_10s"):
    download.plan("1080p")


def test_the_video_tower_includes_all_shards_and_the_index(tmp_path):
  download.download(releases.WAN, tmp_path, hub=Hub())
  assert sizes(tmp_path) == {
    f"Wan2.2-TI2V-5B/diffusion_pytorch_model{rest}": size
    for rest, size in (
      ("-00001-of-00002.safetensors", 50),
      ("-00002-of-00002.safetensors", 51),
      (".safetensors.index.json", 2),
    )
  }


def test_complete_files_are_not_downloaded_again(tmp_path, log_lines):
  download.download("720x720_5s", tmp_path, hub=Hub())
  vae = tmp_path / "Wan2.2-TI2V-5B/Wan2.2_VAE.pth"
  vae.write_bytes(b"x" * 3)
  hub, asked = Hub(), []
  download.download(
    "720x720_5s",
    tmp_path,
    hub=hub,
    confirm=lambda question: not asked.append(question),
  )
  assert hub.fetched == ["Wan2.2_VAE.pth"] and len(asked) == 1
  assert "720x720_5s: 7 files, of which 6 are there" in log_lines
  assert sizes(tmp_path) == FILES_720
  download.download("720x720_5s", tmp_path, hub=hub, confirm=asked.append)
  assert len(hub.fetched) == len(asked) == 1


def test_the_size_is_shown_and_nothing_is_downloaded_without_consent(
  tmp_path, log_lines
):
  asked = []
  large = {repo: dict(files) for repo, files in RELEASE.items()}
  large["chetwinlow1/Ovi"]["model.safetensors"] = 3 * 2**30
  hub = Hub(repos=large)
  paths = download.download("720x720_5s", tmp_path, asked.append, hub)
  assert paths == [] and hub.fetched == [] and not sizes(tmp_path)
  assert asked == [f"Fetch 3.0 GiB to {tmp_path}?"]
  assert log_lines[1].startswith("to fetch: 3.0 GiB; free in ")


def test_a_download_larger_than_the_disk_is_refused(tmp_path, monkeypatch):
  usage = collections.namedtuple("usage", "free")
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(121))
  hub, out_dir = Hub(), tmp_path / "not" / "made"
  with pytest.raises(OSError, match=f"free in {tmp_path}, .* make room"):
    download.download("720x720_5s", out_dir, hub=hub)
  assert hub.fetched == []
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(122))
  download.download("720x720_5s", out_dir, hub=hub)
  assert len(hub.fetched) == 7


def test_files_missing_on_the_hub_are_named(tmp_path):
  gone = dict(RELEASE) | {"hkchengrex/MMAudio": {"README.md": 1}}
  with pytest.raises(ValueError, match=r"ext_weights/v1-16.pth .* no such"):
    download.download("720x720_5s", tmp_path, hub=Hub(repos=gone))
  unknown = dict(RELEASE) | {"chetwinlow1/Ovi": {"model.safetensors": None}}
  with pytest.raises(ValueError, match=r"model.safetensors with its size"):
    download.download("720x720_5s", tmp_path, hub=Hub(repos=unknown))


class Unreachable(Exception):
  """Stands for httpx's errors, which are no OSErrors."""


@pytest.mark.parametrize(
  ("error", "method", "what"),
  [
    (
      Unreachable("no route"),
      "model_info",
      r"asking for model.safetensors of chetwinlow1/Ovi .*no route.*run again",
    ),
    (
      Unreachable("cut off"),
      "hf_hub_download",
      r"fetching model.safetensors of chetwinlow1/Ovi .*cut off.*run again",
    ),
    (ConnectionError("reset"), "hf_hub_download", "reset; .*again, it resumes"),
    (RuntimeError("CAS service"), "hf_hub_download", "CAS service; .*again"),
  ],
)
@pytest.mark.parametrize("module", ["hub", "httpx", "httpx2"])
def test_network_errors_are_reported_in_one_line(
  tmp_path, monkeypatch, error, method, what, module
):
  class Broken(Hub):
    pass

  def fail(*_, **__):
    raise error

  setattr(Broken, method, fail)
  if module == "hub":
    Broken.errors = types.SimpleNamespace(HfHubHTTPError=Unreachable)
  else:
    transport = types.SimpleNamespace(HTTPError=Unreachable)
    monkeypatch.setitem(sys.modules, module, transport)
  with pytest.raises(OSError, match=what):
    download.download("720x720_5s", tmp_path, hub=Broken())


def test_without_network_one_line_names_the_host(tmp_path):
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Offline(Hub):
    endpoint: str = "https://somebody:secret@hub.example.org/api"

    def model_info(self, *_, **__):
      raise ConnectionError("cannot resolve\n\nname\x1b[2J " + "x" * 5000)

  with pytest.raises(OSError, match=r" from hub\.example\.org failed") as error:
    download.download("720x720_5s", tmp_path, hub=Offline())
  message = str(error.value)
  assert len(message.splitlines()) == 1 and len(message) < 600
  assert "\x1b" not in message and "secret" not in message
  assert "cannot resolve name" in message and "check the network" in message


class InvalidURL(Exception):
  """Stands for httpx's, which is none of its HTTPErrors."""


@pytest.mark.parametrize(
  ("error", "message"),
  [
    (
      ImportError("Using SOCKS proxy, but\n'socksio' is not installed"),
      "ALL_PROXY names a SOCKS proxy, which needs the package socksio; pip"
      " install socksio, or unset ALL_PROXY",
    ),
    (InvalidURL("Invalid port: 'secret'"), "HF_ENDPOINT .* ALL_PROXY, HF_"),
    (ValueError("Port: 'secret'"), "HF_ENDPOINT .* ALL_PROXY, HF_"),
    (FileNotFoundError(2, "No such file"), "variables ALL_PROXY, HF_ENDPOINT"),
  ],
)
def test_settings_of_the_network_that_cannot_be_used_are_named(
  error, message, tmp_path, monkeypatch
):
  class Broken(Hub):
    def model_info(self, *_, **__):
      raise error

  transport = types.SimpleNamespace(InvalidURL=InvalidURL)
  monkeypatch.setitem(sys.modules, "httpx2", transport)
  network_settings.clear(monkeypatch)
  monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@127.0.0.1:1")
  monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org")
  with pytest.raises(OSError, match=message) as caught:
    download.download("720x720_5s", tmp_path, hub=Broken())
  text = str(caught.value)
  assert "\n" not in text and "secret" not in text


@pytest.mark.parametrize("mark", "#/?")
def test_no_part_of_a_password_is_shown(mark, tmp_path, monkeypatch):
  httpx = pytest.importorskip("httpx")
  address = f"http://me:1{mark}secret@host.example.org:1"

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Http(Hub):
    endpoint: str = address.replace("me:1", "secret")

    def model_info(self, *_, **__):
      httpx.Client(proxy=address.replace("1", "s3cret", 1))

  with pytest.raises(OSError, match="from the hub failed: Inv") as caught:
    download.download("720x720_5s", tmp_path, hub=Http())
  assert "cret" not in "".join(traceback.format_exception(caught.value))


def test_settings_of_the_hub_that_cannot_be_used_are_named(
  tmp_path, monkeypatch
):
  class Package(types.ModuleType):
    def __getattr__(self, name):
      raise ValueError("invalid literal for int() with base 10: 'abc'")

  monkeypatch.setitem(sys.modules, "huggingface_hub", Package("hub"))
  network_settings.clear(monkeypatch)
  monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "abc")
  with pytest.raises(
    ValueError, match="check the variable HF_HUB_DOWNLOAD_TIM"
  ):
    download.download("720x720_5s", tmp_path)


def test_a_truncated_download_is_named(tmp_path):
  path = tmp_path / "Ovi/model.safetensors"
  with pytest.raises(ValueError, match=f"expected 40 bytes at {path}"):
    download.download("720x720_5s", tmp_path, hub=Hub(short=1))


def test_a_missing_package_is_named_with_the_install_command(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(ValueError, match=r"pip install -e '\.\[hub\]'"):
    download.download("720x720_5s", tmp_path)
