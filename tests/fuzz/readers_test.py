"""Every reader of a foreign file, given mutations of a valid one.

A reader returns, or raises ValueError or OSError: no other error, no memory
beyond a multiple of the file, no code. Mutations are seeded by the number of
the example, so `pytest -k NAME` repeats a failure. The default run takes a few
examples of each; `-m slow` takes many.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import zipfile
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np
import pytest
from etils import epath
from PIL import Image

from ovi_jax import geometry
from ovi_jax import prompt
from ovi_jax import synthetic
from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.checkpoint import integrity
from ovi_jax.checkpoint import manager
from ovi_jax.checkpoint import reader as saved
from ovi_jax.checkpoint import workdir
from ovi_jax.convert import reader
from ovi_jax.convert import standin
from ovi_jax.convert import torch_file
from ovi_jax.curation.captioning import cache
from ovi_jax.curation.captioning import responses
from ovi_jax.curation.engine import manifest as input_manifest
from ovi_jax.curation.engine import shard
from ovi_jax.curation.engine import shard_store
from ovi_jax.data import builder
from ovi_jax.data import shards
from ovi_jax.media import decode
from ovi_jax.media import images
from ovi_jax.media import mp4
from ovi_jax.media import probe
from ovi_jax.modality import AV
from ovi_jax.pretrained import tensor_file
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import noise
from ovi_jax.sampling import outputs
from ovi_jax.sampling import requests
from ovi_jax.study import bundle
from ovi_jax.study import manifest as study_manifest
from ovi_jax.study import settings as study_settings
from ovi_jax.training import init_from
from tests.lib import mutations
from tests.lib import pickle_bytes
from tests.lib import random_records
from tests.lib import study_clips
from tests.lib import traced_memory

FEW, MANY = 24, 150
ALLOWED = (ValueError, OSError)
# Buffers of libraries; besides, a reader may take a multiple of the file.
MOST_BYTES, MULTIPLE = 96 << 20, 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """A reader and a valid file for it.

  Attributes:
    make: writes a valid file (and what belongs to it) into an empty folder,
      returns the path that is mutated.
    read: what is under test; given that path.
    is_json: mutate the value rather than its bytes, every other time.
    seal: called after the mutation: makes checksums fit it.
    weight: cost; of a target of 4, a fourth of the examples are run.
  """

  make: Callable[[pathlib.Path], pathlib.Path]
  read: Callable[[pathlib.Path], object]
  is_json: bool = False
  seal: Callable[[pathlib.Path], None] = lambda path: None
  weight: int = 1


def saved_at(name: str, content: bytes | str):
  """A `make` that writes one file."""

  def make(folder):
    raw = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(raw)
    return folder / name

  return make


def tensors():
  return {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.zeros((0, 2), np.float16),
  }


def safetensors_file(folder, name="m.safetensors"):
  header, start = {}, 0
  for key, array in tensors().items():
    end = start + array.nbytes
    kind = {4: "F32", 2: "F16"}[array.dtype.itemsize]
    header[key] = {
      "dtype": kind,
      "shape": list(array.shape),
      "data_offsets": [start, end],
    }
    start = end
  raw = json.dumps(header).encode()
  body = b"".join(array.tobytes() for array in tensors().values())
  path = folder / name
  path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)
  return path


def shard_index(folder):
  safetensors_file(folder, "m-00001-of-00001.safetensors")
  names = dict.fromkeys(tensors(), "m-00001-of-00001.safetensors")
  path = folder / "m.safetensors.index.json"
  path.write_text(json.dumps({"metadata": {}, "weight_map": names}))
  return path


def torch_zip(folder):
  torch_file.save(folder / "m.pth", tensors())
  return folder / "m.pth"


def torch_pickle(folder):
  """A zip whose pickle is mutated; see `repack`."""
  torch_zip(folder)
  with zipfile.ZipFile(folder / "m.pth") as archive:
    name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
    (folder / "data.pkl").write_bytes(archive.read(name))
  return folder / "data.pkl"


def repack(path):
  """Put a mutated pickle back into its zip, with a right checksum."""
  old = path.with_name("m.pth").rename(path.with_name("old.pth"))
  with (
    zipfile.ZipFile(old) as source,
    zipfile.ZipFile(path.with_name("m.pth"), "w") as target,
  ):
    for name in source.namelist():
      is_pickle = name.endswith("data.pkl")
      raw = path.read_bytes() if is_pickle else source.read(name)
      target.writestr(name, raw)


def torch_legacy(folder):
  value = pickle_bytes.mapping(w=pickle_bytes.tensor())
  return pickle_bytes.legacy(folder / "m.pth", value)


def all_tensors(path):
  found = reader.open_tensors(path)
  for name in found.shapes:
    found.read(name)


def manifest(folder):
  shipped = pathlib.Path(synthetic.__file__).parent / "weights"
  shutil.copyfile(shipped / weights_dir.MANIFEST, folder / weights_dir.MANIFEST)
  return folder / weights_dir.MANIFEST


def tokenizer(folder):
  source = standin.HERE / "tokenizer.json"
  shutil.copyfile(source, folder / "tokenizer.json")
  return folder / "tokenizer.json"


def tokens(path):
  tokenizer_lib.Tokenizer.load(path).encode(["a red ball", "<S>é</S>" * 20], 64)


NOISE_SHAPES: AV[tuple[int, ...]] = AV(video=(2, 3, 4), audio=(2, 3, 4))


def noise_file(folder):
  arrays = {name: np.zeros((2, 3, 4), np.float16) for name in noise.NAMES}
  np.savez_compressed(folder / "n.npz", **arrays)
  return folder / "n.npz"


def picture(kind):
  def make(folder):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 255, (16, 24, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"p.{kind}")
    return folder / f"p.{kind}"

  return make


def film(folder):
  draw = np.random.default_rng(0)
  frames = draw.integers(0, 255, (5, 32, 32, 3), np.uint8)
  sound = np.zeros(3200, np.float32)
  mp4.write(folder / "f.mp4", [frames], sound, threads=1, preset="ultrafast")
  return folder / "f.mp4"


def decoded(path):
  with contextlib.suppress(*ALLOWED):
    decode.video(path, 0.0, 5 / 24)
  with contextlib.suppress(*ALLOWED):
    decode.audio(path, 0.0, 5 / 24)
  probe.read(path)


def dataset(folder):
  builder.write(
    folder / "d",
    {"train": [random_records.record(0), random_records.record(1)]},
    geometry=random_records.GEOMETRY,
    null_text=random_records.null_text(),
  )
  return folder / "d"


def in_dataset(pattern):
  def make(folder):
    return next(dataset(folder).glob(pattern))

  return make


def reseal(path):
  """Make a dataset's metadata fit a mutated file, but for its own."""
  file = path.parent / builder.METADATA
  if path == file:
    return
  found = json.loads(file.read_text())
  found["files"][path.name] = path.stat().st_size
  if path.name in found["digests"]:
    found["digests"][path.name] = shards.digest(path)
  file.write_text(json.dumps(found))


def records(path):
  split = builder.read(path.parent)
  for number in range(len(split)):
    with contextlib.suppress(*ALLOWED):
      split[number]


def checkpoint(name):
  def make(folder):
    with manager.Manager(folder / "c") as opened:
      state = {"trained_params": {"w": np.arange(6.0).reshape(2, 3)}}
      opened.save(1, state, {"step": 1}, {"a": [1]})
    return folder / "c/1" / name

  return make


def reseal_checkpoint(path):
  """Make the list of checksums fit a mutated description."""
  integrity.write(epath.Path(path.parents[1]), ("state", "meta"))


def reseal_list(path):
  """Make a mutated list of checksums fit itself, if it still can."""
  with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
    found = json.loads(path.read_text())
    found["crc32"] = integrity._crc32_of(found["files"])
    path.write_text(json.dumps(found))


def arrays(path):
  root = next(p for p in path.parents if p.name == "1")
  saved.read(saved.read_info(root), {"trained_params/w": np.zeros((2, 3))})


def described(path):
  root = next(p for p in path.parents if p.name == "1")
  init_from.plan(
    {"w": np.zeros((2, 3), np.float32)},
    [init_from.Source(path=str(root), include=(".*",))],
  )
  saved.read_info(root)


def curated(name):
  def make(folder):
    files = shard_store.ShardFiles(folder=str(folder), shard=0)
    with shard_store.open_output(files) as opened:
      clip = shard_store.clips.Clip(id="a", path="b")
      found = clip.with_facts("quality", {"s": 0.5}, boxes=[[1, 2]])
      opened.writer.add(clip, [found], {"x": b"1"})
      opened.commit("s")
    text = json.dumps({"clips": {"a": ["b", "c"]}, "one_by_one": False})
    pathlib.Path(files.excluded).write_text(text)
    return pathlib.Path(files.path(name))

  return make


def shard_files(path):
  return shard_store.ShardFiles(folder=str(path.parent), shard=0)


def artifact_bytes(path):
  with (
    shard_store.open_artifacts([str(path.parent)], 0) as read_artifact,
    contextlib.suppress(KeyError),
  ):
    read_artifact(shard_store.clips.Clip(id="a", path="b"), "x")


def lines_of(path):
  for line in path.read_bytes().splitlines():
    shard_store.decode(line)


def reply(folder):
  cache.store(folder, "abc", cache.Completion(text="a", tokens_in=1))
  return cache._path(folder, "abc")


def answer(folder):
  voice = dict.fromkeys(responses.VOICE_ATTRIBUTES, "calm")
  text = {
    "visual": "A man says <S>Hi there.<E> in a bright room.",
    "audio": "A calm voice over a soft hum.",
    "speech": ["Hi there."],
    "speakers": [voice],
    "sounds": dict.fromkeys(responses.SOUND_ATTRIBUTES, "soft"),
  }
  return saved_at("answer.txt", json.dumps(text))(folder)


def captioned(path):
  text = path.read_text(errors="replace")
  found = responses.parse(text, responses.Requirements())
  responses.to_prompt(found, geometry.variant("720x720_5s"))


PROMPT = (
  "A man says <S>Hi &amp; bye<E> in a room. <AUDCAP>Wind, steps<ENDAUDCAP>"
)


def rewritten(path):
  text = path.read_text(errors="replace")
  prompt.tag_notes(text)
  prompt.file_stem(text)
  for name in ("720x720_5s", "960x960_10s"):
    prompt.format_for(text, geometry.variant(name))


CSV = 'text_prompt,seed\n"A dog, barking",3\nA red ball,\n'
INFO = "dataset_info.json"
RUN = {"steps": 3, "a": {"b": [1], "c": 1e-4}}
STUDY = study_clips.without_media(["one", "two"], 2, pairs=[["one", "two"]])


def study_file(folder):
  values = study_settings.to_json(STUDY.settings)
  return study_clips.write_file(folder, **values)


def study_folder(folder):
  study_manifest.write(folder, STUDY)
  return folder / study_manifest.FILE


def bundle_sessions(folder):
  bundle.write_private(folder, STUDY, bundle.sessions(STUDY, 2))
  return folder / bundle.FILE


TARGETS = {
  "safetensors": Target(make=safetensors_file, read=all_tensors),
  "shard index": Target(make=shard_index, read=all_tensors, is_json=True),
  "torch zip": Target(make=torch_zip, read=all_tensors),
  "torch pickle": Target(
    make=torch_pickle,
    read=lambda path: all_tensors(path.with_name("m.pth")),
    seal=repack,
  ),
  "torch legacy": Target(make=torch_legacy, read=all_tensors),
  "own weights": Target(
    make=safetensors_file, read=tensor_file.open_safetensors
  ),
  "manifest": Target(
    make=manifest,
    read=lambda path: weights_dir.manifest_of(path.parent),
    is_json=True,
  ),
  "tokenizer": Target(make=tokenizer, read=tokens, is_json=True, weight=4),
  "noise": Target(
    make=noise_file, read=lambda path: noise.read(path, NOISE_SHAPES)
  ),
  "recipe": Target(
    make=saved_at("c.json", json.dumps({"prompt": "a", "seed": [1]})),
    read=lambda path: outputs.prompt_of(path.with_suffix(".mp4")),
    is_json=True,
  ),
  "png": Target(make=picture("png"), read=images.read_image),
  "jpeg": Target(make=picture("jpg"), read=images.read_image),
  "webp": Target(make=picture("webp"), read=images.read_image),
  "film": Target(make=film, read=decoded, weight=2),
  "csv": Target(make=saved_at("r.csv", CSV), read=requests.from_file),
  "tsv": Target(
    make=saved_at("r.tsv", CSV.replace(",", "\t")), read=requests.from_file
  ),
  "list": Target(
    make=saved_at("l.txt", "/v/a.mp4\n/v/b.mp4\n"),
    read=lambda path: input_manifest.expand([f"@{path}"]),
  ),
  "prompt": Target(make=saved_at("p.txt", PROMPT), read=rewritten),
  "dataset metadata": Target(
    make=in_dataset(builder.METADATA), read=records, is_json=True
  ),
  "dataset info": Target(
    make=in_dataset(INFO), read=records, is_json=True, seal=reseal
  ),
  "dataset features": Target(
    make=in_dataset("features.json"), read=records, is_json=True, seal=reseal
  ),
  "dataset index": Target(
    make=in_dataset("index-train.npy"), read=records, seal=reseal
  ),
  "dataset records": Target(
    make=in_dataset("*array_record*"), read=records, seal=reseal
  ),
  "study file": Target(make=study_file, read=study_settings.read, is_json=True),
  "study": Target(
    make=study_folder,
    read=lambda path: study_manifest.read(path.parent),
    is_json=True,
  ),
  "study sessions": Target(
    make=bundle_sessions,
    read=lambda path: bundle.read_private(path.parent, STUDY),
    is_json=True,
  ),
  "checkpoint checksums": Target(
    make=checkpoint(integrity.CHECKSUMS),
    read=described,
    is_json=True,
    seal=reseal_list,
  ),
  "checkpoint description": Target(
    make=checkpoint("meta/metadata"),
    read=described,
    is_json=True,
    seal=reseal_checkpoint,
    weight=2,
  ),
  "checkpoint arrays": Target(
    make=checkpoint("state/_METADATA"),
    read=arrays,
    is_json=True,
    seal=reseal_checkpoint,
    weight=4,
  ),
  "run config": Target(
    make=saved_at(workdir.CONFIG, json.dumps(RUN)),
    read=lambda path: workdir.check_config(path.parent, RUN, ()),
    is_json=True,
  ),
  "curation mark": Target(
    make=curated("done"),
    read=lambda path: shard_store.read_marker(shard_files(path)),
    is_json=True,
  ),
  "curation lines": Target(make=curated("jsonl"), read=lines_of, is_json=True),
  "curation excluded": Target(
    make=curated("excluded"),
    read=lambda path: shard.ExcludedClips.read(shard_files(path)),
    is_json=True,
  ),
  "curation artifacts": Target(
    make=curated("artifacts.zip"), read=artifact_bytes
  ),
  "caption cache": Target(
    make=reply,
    read=lambda path: cache.load(path.parents[1], "abc"),
    is_json=True,
  ),
  "caption answer": Target(make=answer, read=captioned, is_json=True),
}


def mutated(target: Target, data: bytes, seed: int) -> bytes:
  """The example of that number."""
  draw = random.Random(seed)
  if target.is_json and seed % 2:
    return mutations.mutate_json(json.loads(data), draw)
  return mutations.mutate_bytes(data, draw)


def check(target: Target, folder: pathlib.Path, seeds: Sequence[int]) -> None:
  """Read so many examples; AssertionError names the seeds that fail."""
  (folder / "valid").mkdir()
  path = target.make(folder / "valid")
  name, data = path.relative_to(folder / "valid"), path.read_bytes()
  target.read(path)  # the valid file is read
  failures = []
  for seed in seeds:
    copy = folder / "mutated"
    shutil.copytree(folder / "valid", copy)
    (copy / name).write_bytes(mutated(target, data, seed))
    target.seal(copy / name)
    size = (copy / name).stat().st_size
    with traced_memory.peak() as peak:
      try:
        with contextlib.suppress(*ALLOWED):
          target.read(copy / name)
      # Any type but `ALLOWED` is what the test looks for; all are listed.
      except Exception as error:
        failures.append(f"{seed}: {type(error).__name__}: {error!s:.200}")
    if peak.bytes > MOST_BYTES + MULTIPLE * size:
      failures.append(
        f"{seed}: {peak.bytes} bytes of memory for a file of {size}"
      )
    shutil.rmtree(copy)
  assert not failures, "\n".join(failures[:10])


@pytest.fixture(autouse=True)
def _no_code(monkeypatch):
  """Fail at once where a reader would run a program."""

  def refused(*arguments, **_):
    raise AssertionError(f"a reader ran {arguments}")

  monkeypatch.setattr(os, "system", refused)
  monkeypatch.setattr("subprocess.Popen.__init__", refused)


# Damaged media and images make their libraries warn; that is no failure here.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_a_mutated_file_is_read_or_refused(name, tmp_path):
  target = TARGETS[name]
  check(target, tmp_path, range(FEW // target.weight))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_many_mutated_files_are_read_or_refused(name, tmp_path):
  target = TARGETS[name]
  check(target, tmp_path, range(FEW, MANY // target.weight))
