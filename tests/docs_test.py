"""README.md and the guides: commands run, links resolve."""

import importlib
import json
import pathlib
import re
import shutil

import einops
import numpy as np
import pytest
from PIL import Image
from safetensors import numpy

from ovi_jax.convert import standin as standin_lib
from ovi_jax.convert.standin import write as standin
from ovi_jax.media import mp4
from ovi_jax.synthetic.world import world as worlds
from ovi_jax.training import logs
from tests.lib import doc_commands

ROOT = doc_commands.ROOT
HOW_TO = doc_commands.DOCS / "how_to"
SAMPLING = [
  ROOT / "README.md",
  doc_commands.DOCS / "getting_started.md",
  HOW_TO / "sample.md",
  HOW_TO / "conditions.md",
  HOW_TO / "python_api.md",
  HOW_TO / "convert.md",
  HOW_TO / "evaluate.md",
  HOW_TO / "evaluate_clips.md",
  HOW_TO / "ablate.md",
  HOW_TO / "train_codecs.md",
]
TRAINING = [
  HOW_TO / "fine_tune.md",
  HOW_TO / "lora.md",
  HOW_TO / "own_clips.md",  # tests/data/from_files_test.py
  HOW_TO / "train.md",
]
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")


def test_every_command_of_the_guides_is_run_or_has_a_reason_not_to_be():
  run = {
    command
    for page in (*SAMPLING, *TRAINING)
    for _, command in doc_commands.commands(page)
  }
  for page in doc_commands.guides():
    for _, command in doc_commands.commands(page):
      alone = any(re.search(p, command) for p in doc_commands.RUN_ALONE)
      is_known = command in run or alone or doc_commands.is_excluded(command)
      assert is_known, f"{page}: {command}"
  all_of_them = "\n".join(
    command
    for page in doc_commands.guides()
    for _, command in doc_commands.commands(page)
  )
  for pattern in (*doc_commands.NOT_RUN, *doc_commands.RUN_ALONE):
    assert re.search(pattern, all_of_them, re.MULTILINE), pattern


def test_fields_that_commands_set_exist():
  scripts = {"train.py": None, "sample.py": "sample"}
  for page in doc_commands.guides():
    for kind, command in doc_commands.commands(page):
      script = re.match(r"(?:\w+=\S+ )*python (\w+\.py) ", command)
      if kind == "python" or script is None or script[1] not in scripts:
        continue
      named = re.search(r"--config=configs/([\w/]+)\.py:?(\S*)", command)
      name, argument = named.groups() if named else (scripts[script[1]], "")
      if name in ("fine_tune", "lora"):  # reads the weights that it names
        name, argument = "fusion", ""
      dotted = str(name).replace("/", ".")
      module = importlib.import_module(f"configs.{dotted}")
      config = module.get_config(argument) if argument else module.get_config()
      for field in re.findall(r"--config\.([\w.]+)=", command):
        value = config
        for part in field.split("."):
          assert part in value, f"{page}: {field} is not in configs/{name}.py"
          value = value[part]


def test_commands_are_written_without_the_environments_folder():
  for page in doc_commands.guides():
    text = page.read_text("utf-8")
    assert ".venv/bin/python" not in text and ".venv/bin/pip" not in text, page


def test_links_lead_to_files_and_headings():
  pages = [*ROOT.glob("*.md"), *doc_commands.pages()]
  pages.append(ROOT / "benchmarks" / "README.md")
  for page in pages:
    text = re.sub(
      r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S
    )
    for link in LINK.findall(text):
      if "://" in link:
        continue
      name, _, anchor = link.partition("#")
      target = (page.parent / name).resolve() if name else page
      assert target.exists(), f"{page}: {link}"
      if anchor:
        assert anchor in _anchors(target), f"{page}: {link}"


def _anchors(page: pathlib.Path) -> set[str]:
  """Anchors of the headings of a page, as GitHub and MyST make them."""
  headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
  return {
    re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    for heading in headings
  }


@pytest.mark.slow
def test_readme_sampling_conversion_and_evaluation(tmp_path):
  doc_commands.repository(tmp_path)
  # In place of what the pages download or ask the reader for.
  standin.write_release(tmp_path / "release")
  write_files_of_other_tools(tmp_path)
  # An image of the default aspect: the prompt's compiled program is reused.
  Image.new("RGB", (96, 64), (200, 120, 40)).save(tmp_path / "me.png")
  (tmp_path / "prompts.csv").write_text("text_prompt\nWaves. Audio: surf.\n")
  fine_tuning = {c for _, c in doc_commands.commands(HOW_TO / "fine_tune.md")}
  done = doc_commands.run_pages(SAMPLING, tmp_path, fine_tuning)
  assert len(done) >= 20
  first = list((tmp_path / "samples" / "first").glob("*.mp4"))
  assert len(first) == 2
  assert len(list((tmp_path / "samples" / "six").glob("*.mp4"))) == 6
  assert (tmp_path / "small_ovi.gif").read_bytes()[:3] == b"GIF"
  assert mp4.read(tmp_path / "ball.mp4")[0].shape == (121, 64, 64, 3)
  assert list((tmp_path / "samples" / "maps" / "attention_maps").glob("*.png"))
  assert "basic: flicker" in (tmp_path / "evaluation/report.md").read_text()
  report = json.loads((tmp_path / "report.json").read_text())
  assert {score["name"] for score in report["scores"]} >= {"kind", "sync F1"}


def write_files_of_other_tools(folder: pathlib.Path) -> None:
  """The stand-in's text encoder, towers and vocoder as single files."""
  wan, release = "Wan2.2-TI2V-5B", folder / "release"
  towers = standin_lib.tensors("Ovi/model.safetensors")
  for tower in ("video", "audio"):
    of_tower = {n: x for n, x in towers.items() if n.startswith(f"{tower}_")}
    numpy.save_file(of_tower, folder / f"{tower.upper()}.safetensors")
  umt5 = standin_lib.tensors(f"{wan}/models_t5_umt5-xxl-enc-bf16.pth")
  umt5 = {name: x.astype(np.float16) for name, x in umt5.items()}
  numpy.save_file(umt5, folder / "umt5_xxl_fp16.safetensors")
  shutil.copy(release / "MMAudio/ext_weights/best_netG.pt", folder)
  shutil.copy(release / f"{wan}/google/umt5-xxl/tokenizer.json", folder)


@pytest.mark.slow
def test_training_from_raw_clips_to_sample_py(tmp_path):
  doc_commands.repository(tmp_path)
  doc_commands.run_pages([HOW_TO / "train.md"], tmp_path)
  (clip,) = (tmp_path / "runs" / "samples").glob("*.mp4")
  frames, fps, wave, rate = mp4.read(clip)
  assert frames.shape == (121, 64, 64, 3) and fps == 24
  assert wave is not None
  assert rate == 16_000 and abs(wave.size / rate - 5.02) < 0.1
  lines = logs.read(tmp_path / "runs" / "fusion")
  assert any("eval/loss_video_t0.25-0.50" in line for line in lines)
  made = tmp_path / "runs" / "fusion" / "samples" / "step-00000004"
  assert len(list(made.glob("*.mp4"))) == 2


@pytest.mark.slow
def test_fine_tuning_from_a_folder_of_clips(tmp_path):
  doc_commands.repository(tmp_path)
  write_clips(tmp_path, 8)
  pages = [HOW_TO / "fine_tune.md", HOW_TO / "lora.md"]
  doc_commands.run_pages(pages, tmp_path)
  before, after = (
    json.loads(path.read_text())
    for name in ("before", "after")
    for path in (tmp_path / "runs" / name).glob("*.json")
  )
  # The same seed and settings, other weights.
  assert before["config"] == after["config"] and before["seed"] == after["seed"]
  assert after["config"]["guidance_scale"] == {"video": 1.5, "audio": 1.5}
  sums = [made["weights"]["sha256"] for made in (before, after)]
  assert {name for name in sums[0] if sums[0][name] != sums[1][name]} == {
    "fusion"
  }
  lines = logs.read(tmp_path / "runs" / "mine")
  assert any("eval/loss_video" in line for line in lines)
  assert list((tmp_path / "runs" / "mine" / "samples").rglob("*.mp4"))
  (made,) = (tmp_path / "runs" / "with_lora").glob("*.json")
  (lora,) = json.loads(made.read_text())["loras"]
  assert lora["strength"] == {"video": 0.8, "audio": 0.8}
  # Rank 8 of a rank that is at most 8.
  assert (tmp_path / "runs" / "mine.safetensors").stat().st_size < 2**20


def write_clips(folder: pathlib.Path, count: int) -> None:
  """Clips at 30 fps, larger than they are read, and their table."""
  world, lines = worlds.World(seed=991, complete=True), ["path,caption,split"]
  (folder / "clips").mkdir()
  for number in range(count):
    made = world.clip(number)
    assert made.frames_THWC is not None
    frames_THWC = einops.repeat(
      made.frames_THWC, "T H W C -> T (H h) (W w) C", h=2, w=2
    )
    # Every fourth frame is repeated: 30 frames a second.
    places = np.arange(len(frames_THWC) * 5 // 4) * 4 // 5
    path = folder / "clips" / f"{number}.mp4"
    mp4.write(path, [frames_THWC[places]], made.wave_A, fps=30)
    split = "test" if number % 4 == 3 else "train"
    lines.append(f'{path.name},"{made.captions[0]}",{split}')
  (folder / "captions.csv").write_text("\n".join(lines) + "\n")
