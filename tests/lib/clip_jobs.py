"""Clips to make, planned by hand."""

import pathlib

from ovi_jax import geometry
from ovi_jax.sampling import planning
from ovi_jax.sampling import requests

WIDE, TALL = (
  geometry.Clip(
    latent_frames=4, latent_height=h, latent_width=w, audio_latents=21
  )
  for h, w in ((4, 6), (6, 4))
)


def job(name: str, clip: geometry.Clip = WIDE, image: str = "") -> planning.Job:
  """A clip whose prompt, stem and seed are a letter's."""
  picture = pathlib.Path(image) if image else None
  return planning.Job(
    request=requests.Request(
      prompt=name, image=picture, seed=ord(name), stem=name
    ),
    text=name,
    clip=clip,
    recipe={"seed": ord(name), "config": {"num_steps": 1}},
    path=pathlib.Path(f"{name}.mp4"),
  )
