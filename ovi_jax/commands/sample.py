"""Generate videos with sound from prompts and, optionally, given files.

  ovi-sample --prompt="A red ball bounces. Audio: dull wooden knocks."
  ovi-sample --weights=DIR --prompt="…" --image=FILE.png
  ovi-sample --weights=DIR --prompts=FILE.csv --config.solver=euler

Without --weights, the small Ovi in the package is used. --config.FIELD=VALUE
sets a field of configs/sample.py. docs/how_to/sample.md explains prompts, flags
and fields.
"""

import pathlib
import sys
from typing import Any

from absl import flags

from ovi_jax import cli
from ovi_jax import config_files
from ovi_jax import flag_profiles
from ovi_jax import storage
from ovi_jax import synthetic
from ovi_jax.aot import sample_step
from ovi_jax.models import quantized
from ovi_jax.sampling import conditions
from ovi_jax.sampling import denoiser
from ovi_jax.sampling import first_frames
from ovi_jax.sampling import generate
from ovi_jax.sampling import opening
from ovi_jax.sampling import requests

FLAGS = flags.FLAGS


def define_flags() -> None:
  config_files.define(default="sample")
  flags.DEFINE_string(
    "prompt",
    "",
    "Description of picture, speech and sound: speech as <S>words<E>, the sound"
    " last, as Audio: …",
  )
  flags.DEFINE_string(
    "prompts",
    "",
    "CSV or TSV with the column text_prompt and, optionally, image_path, seed,"
    " seconds, last_image_path, video_path, audio_path, extend_path,"
    " voice_path, keep, keep_audio_until.",
  )
  flags.DEFINE_string(
    "image", "", "First frame, for --prompt: PNG, JPEG or WebP."
  )
  flags.DEFINE_string(
    "first_frame_endpoint",
    "",
    "URL of an OpenAI-compatible API (http://…/v1) that makes the first frames"
    " of prompts without an image.",
  )
  flags.DEFINE_string(
    "first_frame_model", "", "Model of --first_frame_endpoint."
  )
  flags.DEFINE_string(
    "first_frame_key_env",
    "",
    "Environment variable with the API key of --first_frame_endpoint.",
  )
  flags.DEFINE_string("last_image", "", "Last frame, for --prompt.")
  flags.DEFINE_string(
    "video",
    "",
    "Video file: its picture is kept, a sound is generated. FILE#t=START,END"
    " uses a part of it, as of --audio and --extend.",
  )
  flags.DEFINE_string(
    "audio", "", "Sound file: it is kept, a video is generated."
  )
  flags.DEFINE_string("extend", "", "Video file to continue.")
  flags.DEFINE_string(
    "voice",
    "",
    "Sound of 1 to 3 s whose voice speaks in the clip, for weights that were"
    " trained with reference voices.",
  )
  flags.DEFINE_float(
    "seconds",
    None,
    "Length of the clip; with --extend, of the new part. Clips longer than the"
    " model's are generated in overlapping windows; their prompts are separated"
    " by |.",
  )
  flags.DEFINE_string(
    "keep",
    "",
    "Intervals in seconds, such as 0-2,4-5, of --video with its sound, or of"
    " --audio, that are kept; the rest is generated.",
  )
  flags.DEFINE_float(
    "keep_audio_until",
    None,
    "Keep the sound of --video up to this second; the rest is generated.",
  )
  flags.DEFINE_string(
    "weights",
    str(synthetic.WEIGHTS),
    "Directory of converted or exported weights.",
  )
  flags.DEFINE_string(
    "lora",
    "",
    "LoRAs: FILE[:STRENGTH] with commas; FILE:VIDEO/AUDIO for each tower.",
  )
  flags.DEFINE_enum(
    "generate",
    denoiser.BOTH,
    list(denoiser.NEEDS),
    "Video with sound, or only one of them.",
  )
  flags.DEFINE_string("out", "samples", "Output directory.")
  flags.DEFINE_string(
    "noise",
    "",
    ".npz file with the initial noise; replaces the noise of the seed.",
  )
  flags.DEFINE_bool(
    "save_latents", False, "Also write the final latents (.npz)."
  )
  flags.DEFINE_bool(
    "attention_maps", False, "Also write audio-video attention maps."
  )
  flags.DEFINE_string(
    "aot",
    "",
    "Do not sample: compile for this TPU topology, such as v6e:2x4, and report"
    " HBM, FLOPs and collective traffic.",
  )
  flags.DEFINE_enum(
    "aot_quantize",
    "",
    ("", *quantized.DTYPES),
    "With --aot and without converted weights: assume 8-bit weights of this"
    " kind.",
  )
  flags.DEFINE_enum(
    "flags_profile",
    flag_profiles.NONE,
    flag_profiles.names(),
    "Compiler flags for a kind of chip, see docs/how_to/many_devices.md.",
  )
  flags.DEFINE_bool("overwrite", False, "Generate existing clips again.")


def main() -> None:
  if not FLAGS.out:
    raise ValueError("--out=DIR is empty; name a folder, or leave it out")
  weights, out = storage.locate(FLAGS.weights), storage.locate(FLAGS.out)
  flag_profiles.apply(FLAGS.flags_profile, flag_profiles.SAMPLE)
  if FLAGS.aot and FLAGS.generate != denoiser.BOTH:
    raise ValueError("--aot compiles both towers; leave out --generate")
  if FLAGS.aot:
    fits = sample_step.run(
      FLAGS.aot,
      FLAGS.config,
      weights,
      out,
      FLAGS.flags_profile,
      _named_files(),
      bool(FLAGS.image or FLAGS.first_frame_endpoint),
      FLAGS.seconds,
      FLAGS.lora,
      FLAGS.aot_quantize,
    )
    sys.exit(0 if fits else cli.DOES_NOT_FIT)
  if FLAGS.aot_quantize:
    raise ValueError("--aot_quantize is for --aot; name a topology with --aot")
  names = (*requests.COLUMNS, "seconds")
  given = {name: getattr(FLAGS, name) for name in names}
  asked = FLAGS.prompt, FLAGS.prompts, FLAGS.image, FLAGS.config.mode
  generate.run(
    settings=opening.resolve_settings(FLAGS.config, weights, FLAGS.lora),
    requests=requests.from_flags(*asked, **given),
    weights=weights,
    out=out,
    noise=FLAGS.noise,
    save_latents=FLAGS.save_latents,
    maps=FLAGS.attention_maps,
    overwrite=FLAGS.overwrite,
    lora=FLAGS.lora,
    generate=FLAGS.generate,
    first_frame=first_frames.from_values(
      FLAGS.first_frame_endpoint,
      FLAGS.first_frame_model,
      FLAGS.first_frame_key_env,
    ),
  )


def _named_files() -> conditions.Conditions:
  """What the flags name, whether files are there or not."""
  names = conditions.FILES
  files: dict[str, Any] = {
    n: pathlib.Path(v) for n in names if (v := getattr(FLAGS, n))
  }
  return conditions.Conditions(
    keep=conditions.parse_intervals(FLAGS.keep) if FLAGS.keep else (),
    keep_audio_until=FLAGS.keep_audio_until,
    **files,
  )


def start() -> None:
  """Run the command."""
  hint = "pass a prompt as --prompt=TEXT, with quotation marks around TEXT"
  cli.run_script(define_flags, main, __doc__ or "", hint)
