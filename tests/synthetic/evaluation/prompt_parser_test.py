"""Parsing of all caption wordings into scenes."""

import numpy as np
import pytest

from ovi_jax.synthetic import world as worlds
from ovi_jax.synthetic.evaluation import prompt_parser as facts_lib
from ovi_jax.synthetic.world import captions
from ovi_jax.synthetic.world import scene


def test_prompts_are_parsed_into_their_scenes():
  facts = facts_lib.facts
  assert facts("A red ball bounces on a wooden floor.") == facts_lib.Facts(
    kind="ball", colours=("red",), sound="wood"
  )
  prompt = (
    "A cartoon face in an orange hat says <S>ah oh<E>. Audio: a deep voice."
  )
  assert facts(prompt) == facts_lib.Facts(
    kind="face",
    colours=("orange",),
    sound="low",
    vowels=("ah", "oh"),
    count=2,
  )
  assert facts("<AUDCAP>Four high beeps.<ENDAUDCAP>") == facts_lib.Facts(
    kind="lamp", sound="high", count=4
  )
  assert facts("A blue lamp stays dark. Audio: no sound.") == facts_lib.Facts(
    kind="lamp", colours=("blue",), count=0, silent=True
  )
  assert facts("Audio: deep soft thuds.").sound == "rubber"
  assert facts("Audio: silence.") == facts_lib.Facts(kind=None, silent=True)


def check(
  shown: scene.Scene, found: facts_lib.Facts, seen: bool, has_sound: bool
):
  quiet = not shown.events
  colours = tuple(b.colour for b in shown.balls) or (shown.colour,)
  assert found.colours == (colours if seen else ())
  assert found.silent == (has_sound and quiet)
  if seen or not quiet:
    assert found.kind == shown.kind
  if (has_sound and not quiet) or (seen and shown.kind == scene.BALL):
    assert found.sound == shown.sound
  if shown.kind == scene.FACE and seen:
    assert found.vowels == shown.words
  if shown.kind != scene.BALL and seen:
    assert found.count == len(shown.events)


@pytest.fixture(scope="module")
def scenes():
  world = worlds.World(seed=5, size=16, pairs="all")
  return [world.clip(index, slice(0, 1)).scene for index in range(120)]


@pytest.mark.parametrize(
  "seen, has_sound", [(True, True), (True, False), (False, True)]
)
def test_every_caption_of_the_world_is_parsed(scenes, seen, has_sound):
  random = np.random.default_rng(0)
  for shown in scenes:
    for tagged in (False, True):
      caption = captions.caption(
        shown, random, tagged=tagged, seen=seen, has_sound=has_sound
      )
      check(shown, facts_lib.facts(caption), seen, has_sound)


def test_prompts_of_another_world_are_refused():
  with pytest.raises(ValueError, match="no prompt of the world"):
    facts_lib.facts("Waves roll in. Audio: wind and surf.")
  with pytest.raises(ValueError, match="no prompt of the world"):
    facts_lib.facts("A face in a red hat says <S>good morning<E>.")
