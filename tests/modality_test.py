"""Pairs of a video and an audio value."""

from ovi_jax.modality import AV


def test_a_map_leaves_absent_modalities_out():
  assert AV(video=2, audio=3).map(lambda name, x: f"{name}{x}") == AV(
    video="video2", audio="audio3"
  )
  assert AV(audio=3).map(lambda _, x: x + 1) == AV(audio=4)
