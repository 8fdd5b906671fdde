"""Output directories are replaced atomically, by one process at a time."""

import contextlib
import errno
import resource
import subprocess
import sys

import pytest

from ovi_jax.convert import convert
from ovi_jax.convert import staging
from ovi_jax.convert import standin
from ovi_jax.pretrained import weights_dir
from tests.lib import repacked_weights

SIZES = standin.manifest()["config"]


@contextlib.contextmanager
def limit(size):
  """No file may become larger, as on a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def tree(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in folder.rglob("*")
    if p.is_file()
  }


def test_new_files_replace_old_ones_at_the_end(tmp_path):
  out = tmp_path / "a" / "out"
  for content in ("old", "new"):
    with staging.staged(out) as folder:
      assert not list(folder.iterdir())
      (folder / "sub").mkdir()
      (folder / "sub" / "x").write_text(content)
      assert tree(out).get("sub/x") in (None, b"old")
      staging.move(folder, out, stale=["y", "sub/x"])
    (out / "y").write_text("stale")
  assert tree(out) == {"sub/x": b"new", "y": b"stale"}
  with staging.staged(out) as folder:
    staging.move(folder, out, stale=["y"])
  assert tree(out) == {"sub/x": b"new"}
  assert sorted(p.name for p in out.iterdir()) == ["sub"]


def test_an_error_leaves_no_new_directory(tmp_path):
  for out in (tmp_path / "a" / "b" / "out", tmp_path):
    with pytest.raises(KeyError), staging.staged(out) as folder:
      (folder / "x").write_text("new")
      raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_second_writer_is_refused_and_changes_nothing(tmp_path):
  with staging.staged(tmp_path) as folder:
    (folder / "x").write_text("first")
    with (
      pytest.raises(
        ValueError, match=f"process is writing to {tmp_path}; wait"
      ),
      staging.staged(tmp_path),
    ):
      pass
    assert (folder / "x").read_text() == "first"
    staging.move(folder, tmp_path)
  with staging.staged(tmp_path):
    pass
  assert tree(tmp_path) == {"x": b"first"}


HOLD = """
import pathlib, signal, sys
from ovi_jax.convert import staging
with staging.staged(pathlib.Path(sys.argv[1])) as folder:
  (folder / "x").write_text("half")
  print("held", flush=True)
  signal.pause()
"""


def test_the_lock_of_a_killed_process_is_released(tmp_path):
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE
  )
  try:
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with (
      pytest.raises(ValueError, match="another process"),
      staging.staged(tmp_path),
    ):
      pass
  finally:
    process.kill()
    process.communicate()
  assert tree(tmp_path) == {".converting/x": b"half", ".converting.lock": b""}
  with staging.staged(tmp_path) as folder:
    assert not list(folder.iterdir())
  assert not list(tmp_path.iterdir())


def test_two_conversions_into_one_directory_exclude_each_other(
  tmp_path, release, monkeypatch
):
  kwargs = {"variant": None, "sizes": SIZES}
  write = convert._write
  refused = []

  def during(*args):
    with pytest.raises(ValueError, match="another process") as error:
      convert.convert(release, tmp_path, components=["vocoder"], **kwargs)
    refused.append(str(error.value))
    return write(*args)

  with monkeypatch.context() as patch:
    patch.setattr(convert, "_write", during)
    convert.convert(release, tmp_path, components=["audio_vae"], **kwargs)
  assert len(refused) == 1
  convert.convert(release, tmp_path, components=["vocoder"], **kwargs)
  weights_dir.read(tmp_path, needs=("audio_vae", "vocoder"))


@pytest.mark.parametrize("existing", [False, True])
def test_an_export_to_a_full_disk_names_it_and_leaves_no_part(
  tmp_path, weights, existing
):
  out = tmp_path / "out"
  sizes = {
    name: weights_dir.component_file(weights, name).stat().st_size
    for name in ("audio_vae", "vocoder")
  }
  parts = sorted(sizes, key=sizes.__getitem__)
  if existing:
    (out / "Ovi").mkdir(parents=True)
    (out / "Ovi" / "model.safetensors").write_text("mine")
  before = tree(tmp_path)
  with (  # the first of them fits, the second does not
    limit(sum(sizes.values()) // 2),
    pytest.raises(OSError, match="make room or write elsewhere") as error,
  ):
    convert.export(weights, out, parts)
  assert str(out) in str(error.value)
  assert tree(tmp_path) == before and out.exists() == existing
  convert.export(weights, out, parts)
  assert len(tree(out)) == 2 + existing


def test_a_conversion_to_a_full_disk_names_it_and_leaves_no_part(
  tmp_path, release
):
  out = tmp_path / "out"
  with limit(10_000), pytest.raises(OSError, match="make room") as error:
    convert.convert(release, out, variant=None, sizes=SIZES)
  assert error.value.filename == str(out)
  assert not out.exists()


def test_a_manifest_that_cannot_be_written_leaves_the_old_directory(
  tmp_path, monkeypatch
):
  path, out = tmp_path / "a.pt", tmp_path / "out"
  tensors = standin.tensors("MMAudio/ext_weights/v1-16.pth")

  def run():
    repacked_weights.save(path, tensors)
    convert.convert(
      None,
      out,
      variant=None,
      sizes=SIZES,
      files={"audio_vae": [str(path)]},
    )

  def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")

  run()
  before = tree(out)
  tensors["decoder.learnable_gain"] = tensors["decoder.learnable_gain"] + 1
  monkeypatch.setattr(weights_dir.Manifest, "save", full)
  with pytest.raises(OSError, match=f"No space left.*{out}"):
    run()
  assert tree(out) == before


def test_a_file_to_convert_is_not_replaced(tmp_path, release):
  source = tmp_path / "vocoder.safetensors"
  content = (release / "MMAudio/ext_weights/best_netG.pt").read_bytes()
  source.write_bytes(content)
  with pytest.raises(ValueError, match="vocoder: .* choose another --out"):
    convert.convert(
      None,
      tmp_path,
      variant=None,
      sizes=SIZES,
      files={"vocoder": [str(source)]},
    )
  assert tree(tmp_path) == {"vocoder.safetensors": content}


def test_tokenizer_files_that_no_conversion_wrote_stay(tmp_path, release):
  (tmp_path / "spiece.model").write_bytes(b"mine")
  convert.convert(
    release, tmp_path, variant=None, sizes=SIZES, components=("umt5",)
  )
  assert (tmp_path / "spiece.model").read_bytes() == b"mine"
