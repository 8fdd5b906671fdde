"""The encode stage on one file."""

from ovi_jax.curation import clip as clips
from ovi_jax.curation.media import clip_media
from ovi_jax.curation.stages import encode

AREA = 96 * 96
SMALL = encode.Config(target_area=AREA)


def run(path, config=SMALL, box=(12, 0, 96, 240), **facts):
  clip = clips.Clip(id="c", path=str(path), seconds=121 / 24)
  clip = clip.with_facts("motion", crop_box=list(box))
  for stage, values in facts.items():
    clip = clip.with_facts(stage, **values)
  kept = {}
  media = clip_media.Media(clip, path, kept)
  return encode.load(config)(clip, media), kept, media
