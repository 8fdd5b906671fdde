"""Features of av-benchmark's caches are imported and scored."""

import numpy as np
import pytest

from ovi_jax.convert import torch_file
from ovi_jax.evaluation import av_benchmark
from ovi_jax.evaluation import distributions
from ovi_jax.evaluation import imported
from ovi_jax.evaluation import report
from ovi_jax.evaluation import run
from tests.lib import media_files

NAMES = ("a", "b.1", "c")


def write_cache(folder, seed):
  """A cache of three clips; returns what is in it."""
  random, made = np.random.default_rng(seed), {}
  folder.mkdir()
  for name in NAMES:
    made[f"{name}.2048"] = random.normal(0, 1, 16).astype(np.float32)
    made[f"{name}.logits"] = random.normal(0, 1, 7).astype(np.float32)
  torch_file.save(folder / "pann_features.pth", made)
  for file in ("clap_laion_audio.pth", "clap_laion_text.pth"):
    values = {n: random.normal(0, 1, 5).astype(np.float32) for n in NAMES}
    torch_file.save(folder / file, values)
    made |= {f"{file}/{n}": v for n, v in values.items()}
  return made


def test_imported_features_give_the_scores_of_the_originals(tmp_path):
  made = {
    n: write_cache(tmp_path / n, s) for s, n in enumerate(("true", "new"))
  }
  counts = {}
  for name in made:
    counts = av_benchmark.convert([tmp_path / name], tmp_path / f"{name}_ours")
    (tmp_path / f"{name}_clips").mkdir()
    for clip in NAMES:
      media_files.write_sound(
        tmp_path / f"{name}_clips/{clip}.wav", media_files.tone(0.1)
      )
  assert counts == {"panns_16k": 3, "clap": 3}
  result = run.run(
    run.Settings(
      systems={"new": tmp_path / "new_clips"},
      reference=tmp_path / "true_clips",
      cache=tmp_path / "cache",
      protocols=["ovi"],
      imported={
        "new": tmp_path / "new_ours",
        "reference": tmp_path / "true_ours",
      },
      draws=10,
      set_draws=5,
    )
  )
  cells = {line.score.name: line.cells["new"] for line in result.lines}
  true, new = (
    {k: np.stack([m[f"{n}.{k}"] for n in NAMES]) for k in ("2048", "logits")}
    for m in (made["true"], made["new"])
  )
  fd = distributions.frechet_distance(new["2048"], true["2048"])
  assert cells["FD_PANNs"].interval.value == pytest.approx(fd, rel=1e-9)
  assert "3 rows for 16 features" in cells["FD_PANNs"].warnings[0]
  cosine = []
  for name in NAMES:
    one, two = (
      made["new"][f"clap_laion_{x}.pth/{name}"].astype(np.float64)
      for x in ("audio", "text")
    )
    cosine.append(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
  assert cells["CLAP"].interval.value == pytest.approx(np.mean(cosine))
  assert "CLAP ↑: LAION, without fusion; not checked on" in report.markdown(
    result
  )
  assert cells["IS"].missing == "too few clips"
  assert "'vggish'" in cells["FD_VGG"].missing


def test_bad_caches_are_refused(tmp_path):
  with pytest.raises(ValueError, match="expected a cache of av-benchmark"):
    av_benchmark.convert([tmp_path], tmp_path / "out")
  (tmp_path / "vggish_features.pth").write_bytes(b"<html>")
  with pytest.raises(ValueError, match="vggish_features"):
    av_benchmark.convert([tmp_path], tmp_path / "out")
  values = {"a": np.array([np.nan], np.float32)}
  torch_file.save(tmp_path / "vggish_features.pth", values)
  with pytest.raises(ValueError, match="not finite"):
    av_benchmark.convert([tmp_path], tmp_path / "out")


def test_bad_folders_of_features_are_refused(tmp_path):
  with pytest.raises(ValueError, match="import-features"):
    imported.read(tmp_path)
  imported.write(tmp_path, "x", {"clip/1": {"y": np.ones(2)}})
  assert imported.read(tmp_path)["clip/1"]["x.y"].tolist() == [1, 1]
  for value, message in (
    (np.array([np.nan]), "'y/a': expected finite numbers"),
    (np.array([1j]), "'y/a': expected numbers or text, found complex128"),
  ):
    imported.write(tmp_path, "x", {"a": {"y": value}})
    with pytest.raises(ValueError, match=message):
      imported.read(tmp_path)
  path = tmp_path / "x.npz"
  path.write_bytes(path.read_bytes()[:50])
  with pytest.raises(ValueError, match="import it again"):
    imported.read(tmp_path)
