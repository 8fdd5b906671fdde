"""Scores of generated clips of the world, from the mp4 alone.

`video_detectors` and `audio_detectors` find objects, events and sounds,
`prompt_parser` reads what the prompt asks for, and `sync` matches the times of
events and sounds. numpy only, no networks; the report is written by
`python -m ovi_jax.synthetic.evaluation`.
"""
