"""Samples beside clips: figures, a table, a sheet of pictures."""

import json
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import overfit_codec
from benchmarks import overfit_data
from ovi_jax.media import images
from ovi_jax.modality import AV

# Higher is nearer for one, lower for the other.
MEASURES = AV(video=overfit_codec.psnr, audio=overfit_codec.mel_distance)
SHOWN = (0, 1, 2, 3)  # clips on the sheet
COLUMNS = 8
WEIGHTS = ("trained", "deaf", "before")  # that samples are made with
MEL_SIZE = (314, 64)  # width and height of a picture of a mel
LOUDEST, QUIETEST = 1.0, -5.0  # log10: white and black


def keep(
  path: pathlib.Path,
  codec: overfit_codec.Codec,
  latents: Sequence[AV[np.ndarray]],
) -> None:
  """Write decoded samples, `video_0`, `audio_0`, ... as float16."""
  arrays = {}
  for i, sample in enumerate(latents):
    for kind, array in sample.present().items():
      decoded = getattr(codec, f"decode_{kind}")(array)
      arrays[f"{kind}_{i}"] = decoded.astype(np.float16)
  np.savez(path, **arrays)


def kept(path: pathlib.Path) -> list[AV[np.ndarray]]:
  """The samples that `keep` wrote."""
  with np.load(path) as file:
    count = 1 + max(int(name.split("_")[1]) for name in file.files)
    return [
      AV(
        **{
          kind: file[f"{kind}_{i}"].astype(np.float32)
          for kind in AV._fields
          if f"{kind}_{i}" in file.files
        }
      )
      for i in range(count)
    ]


def measured(
  codec: overfit_codec.Codec,
  clips: Sequence[overfit_data.Clip],
  samples: Sequence[AV[np.ndarray]],
) -> dict[str, Any]:
  """Each sample against its clip and against the others.

  Beside it, what the codec alone loses, and a clip that stands still: its mean
  over time, the best that a model without a sense of time can do. Sounds of
  different lengths are compared as far as both go.
  """
  found = {}
  for kind in samples[0].present():
    ours = [getattr(x, kind) for x in samples]
    theirs = [c.frames if kind == "video" else c.log_mel for c in clips]
    decode = getattr(codec, f"decode_{kind}")
    encode = getattr(codec, f"encode_{kind}")
    measure = getattr(MEASURES, kind)
    table = overfit_codec.table(measure, ours, theirs)
    nearest = (np.argmax if kind == "video" else np.argmin)(table, 1)
    wrong = table[~np.eye(len(table), dtype=bool)].reshape(len(table), -1)
    best = (np.max if kind == "video" else np.min)(wrong, 1)
    found[kind] = {
      "right": np.diag(table).tolist(),
      "wrong_nearest": best.tolist(),
      "wrong_mean": float(wrong.mean()),
      "codec": [
        measure(decode(encode(x))[: len(s)], x[: len(s)])
        for s, x in zip(ours, theirs)
      ],
      "still": [
        measure(np.broadcast_to(x.mean(0), x.shape)[: len(s)], x[: len(s)])
        for s, x in zip(ours, theirs)
      ],
      "nearest_is_right": int((nearest == np.arange(len(table))).sum()),
    }
  return found


def write(
  folder: pathlib.Path,
  root: pathlib.Path,
  stages: Mapping[str, int],
  facts: Mapping[str, Any],
  frames: int,
) -> None:
  """Write overfit.json, .md and .png of the stages that have samples.

  Args:
    folder: of the results.
    root: of the runs.
    stages: the set of clips of each.
    facts: about the run.
    frames: of a clip.
  """
  codec, results = overfit_codec.Codec.load(root / "data", ()), {}
  for name, number in stages.items():
    if not (root / f"{name}.json").exists():
      continue
    results[name] = json.loads((root / f"{name}.json").read_text())
    clips = overfit_data.clips(number, frames)
    for what in WEIGHTS:
      if (path := root / name / f"{what}.npz").exists():
        results[name][what] = measured(codec, clips, kept(path))
  folder.mkdir(parents=True, exist_ok=True)
  whole = {**facts, "stages": results}
  (folder / "overfit.json").write_text(json.dumps(whole, indent=1) + "\n")
  (folder / "overfit.md").write_text(markdown(whole))
  rows = []
  if "video_pretrain" in results and "audio_finetune" in results:
    rows.append((0, AV("video_pretrain", "audio_finetune")))
  if "fusion" in results:
    rows.append((1, AV("fusion", "fusion")))
  if rows:
    sheet(root, rows, frames).save(folder / "overfit.png")


def markdown(whole: Mapping[str, Any]) -> str:
  """The tables, and what they were made with."""
  lines = [
    "# What each stage learns",
    "",
    "| stage | steps | s a step | training s | loss video | loss audio |",
    "|---|---|---|---|---|---|",
  ]
  for name, result in whole["stages"].items():
    losses = [
      f"{result['loss'][kind]:.4f}" if kind in result["loss"] else "-"
      for kind in AV._fields
    ]
    lines.append(
      f"| {name} | {result['steps']} | {result['step_time']:.3f} |"
      f" {result['training_seconds']:.0f} | {' | '.join(losses)} |"
    )
  lines += [
    "",
    "| samples of | against their clips, mean (worst) | nearest other clip |"
    " all others | their clips, standing still | codec alone | nearest is"
    " right |",
    "|---|---|---|---|---|---|---|",
  ]
  for name, result in whole["stages"].items():
    for what in WEIGHTS:
      for kind, found in result.get(what, {}).items():
        lines.append(_line(name, what, kind, found))
  lines += [
    "",
    "Video: PSNR in dB, higher is nearer. Audio: mean difference of log mels"
    " in dB, lower is nearer. Means over eight clips. Standing still: a clip's"
    " own mean over time, the most that can be had without knowing when.",
    "",
    f"Overrides of the `:mini` configs: `{json.dumps(whole['overrides'])}`.",
    f"Sampler: {whole['sampler']}.",
    "Machine: "
    + ", ".join(f"{k} {v}" for k, v in whole["machine"].items())
    + ".",
    f"Command: `{whole['command']}`.",
    "",
  ]
  return "\n".join(lines)


def _line(name: str, what: str, kind: str, found: Mapping[str, Any]) -> str:
  """A row of the table of samples."""
  right = found["right"]
  worst = min(right) if kind == "video" else max(right)
  return (
    f"| {name}, {what}, {kind} | **{np.mean(right):.1f}** ({worst:.1f}) |"
    f" {np.mean(found['wrong_nearest']):.1f} | {found['wrong_mean']:.1f} |"
    f" {np.mean(found['still']):.1f} | {np.mean(found['codec']):.1f} |"
    f" {found['nearest_is_right']} of {len(right)} |"
  )


def sheet(
  root: pathlib.Path, rows: Sequence[tuple[int, AV[str]]], frames: int
) -> Image.Image:
  """For some clips of each set: frames and mel of the clip, of its sample.

  Args:
    root: of the runs.
    rows: number of a set, and the runs whose samples are shown.
    frames: of a clip.
  """
  pictures, mels = [], []
  for number, runs in rows:
    clips = overfit_data.clips(number, frames)
    samples = AV(*(kept(root / run / "trained.npz") for run in runs))
    for i in SHOWN:
      pairs = (
        (clips[i].frames, clips[i].log_mel),
        (samples.video[i].video, samples.audio[i].audio),
      )
      for video_THWC, mel_TM in pairs:
        places = np.linspace(0, len(video_THWC) - 1, COLUMNS).round()
        chosen = video_THWC[places.astype(int)].astype(np.float32)
        pictures.append(images.to_uint8(2 * chosen - 1))
        mels.append(picture(mel_TM))
  left = images.contact_sheet(np.concatenate(pictures), COLUMNS)
  right = images.contact_sheet(np.stack(mels), 1)
  whole = Image.new("RGB", (left.width + right.width, left.height))
  whole.paste(left, (0, 0))
  whole.paste(right, (left.width, 0))
  return whole


def picture(mel_TM: np.ndarray) -> np.ndarray:
  """A mel as uint8 [height, width, 3], low notes below."""
  light = (mel_TM.astype(np.float32) - QUIETEST) / (LOUDEST - QUIETEST)
  grey = Image.fromarray((np.clip(light.T[::-1], 0, 1) * 255).astype(np.uint8))
  return np.array(
    grey.resize(MEL_SIZE, Image.Resampling.BILINEAR).convert("RGB")
  )
