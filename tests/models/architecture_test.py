"""Sizes from a file are bounded before parameters are made."""

import dataclasses
import json

import pytest

from ovi_jax.models import architecture

STANDARD = json.dumps(architecture.released_sizes())


def test_released_sizes_are_a_tenth_of_the_bounds_or_less():
  sizes = architecture.released_sizes()
  arch = architecture.Architecture.from_release(sizes)
  assert set(arch.components) == set(architecture.COMPONENTS)
  for part, limits in architecture.LARGEST.items():
    towers = sizes["fusion"].values() if part == "fusion" else []
    for values in towers or [sizes.get(part, {})]:
      for key, value in values.items():
        if type(value) is int:
          assert 10 * value <= limits[key], key


def test_every_number_has_a_bound():
  sizes = architecture.released_sizes()
  parts = {"fusion": sizes["fusion"]["video"] | sizes["fusion"]["audio"]}
  for key, config in architecture._KEYS.values():
    fields = {f.name: f.default for f in dataclasses.fields(config)}
    parts[key] = sizes[key] | (fields if key != "t5" else {})
  for part, values in parts.items():
    numbers = {
      key
      for key, value in values.items()
      if not isinstance(value, bool | str)
      and not (isinstance(value, tuple | list) and isinstance(value[0], bool))
    }
    assert architecture.LARGEST[part].keys() == numbers


@pytest.mark.parametrize(
  ("place", "value", "message"),
  [
    ("video_vae.num_res_blocks", 10**6, "expected at most 32, got 1000000"),
    ("video_vae.dim_mult", [1] * 50, "expected at most 12 items, got 50"),
    ("video_vae.temporal_downsample", [True] * 99, "at most 12 items, got 99"),
    ("video_vae.latent_mean", [0.0] * 10**5, "at most 4096 items, got 100000"),
    ("video_vae.latent_std", [1e300], "expected at most 1e"),
    ("audio_vae.hidden_dim", 2**31, "expected at most 16384"),
    ("audio_vae.channel_multipliers", [10**9], "expected at most 64"),
    ("bigvgan.upsample_rates", [10**9], "expected at most 64"),
    (
      "bigvgan.resblock_dilation_sizes",
      [[1] * 10**4],
      "expected at most 12 items, got 10000",
    ),
    ("t5.vocab_size", 10**30, "expected at most 1.67772e"),
    ("t5.num_buckets", 2**31, "expected at most 2048"),
    ("t5.encoder_layers", 10**6, "expected at most 512"),
    ("fusion.video.num_layers", 2**31, "expected at most 512"),
    ("fusion.audio.dim", 2**40, "expected at most 65536"),
    ("fusion.audio.eps", 1e30, "expected at most 0.1"),
    ("fusion.video.patch_size", [1, 2**20, 2], "expected at most 16"),
    ("latents.T", 2**20, "expected at most 4096, got 1048576"),
  ],
)
def test_implausible_sizes_are_refused(place, value, message):
  sizes = json.loads(STANDARD) | {"latents": {"T": 4, "H": 4, "W": 6, "A": 21}}
  *path, key = place.split(".")
  part = sizes
  for name in path:
    part = part[name]
  part[key] = value
  with pytest.raises(ValueError, match=f"{place}: .*{message}"):
    architecture.Architecture.from_release(sizes)


def test_all_implausible_sizes_are_listed_at_once():
  sizes = json.loads(STANDARD)
  sizes["t5"]["dim"] = sizes["bigvgan"]["upsample_initial_channel"] = 2**40
  with pytest.raises(ValueError, match=r"bigvgan.*: .*; t5.dim: .*"):
    architecture.Architecture.from_release(sizes)
