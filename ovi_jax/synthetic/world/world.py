"""The world as an endless sequence of clips, the same for the same seed."""

import dataclasses
from typing import NamedTuple

import numpy as np

from ovi_jax import geometry
from ovi_jax.synthetic.world import balls
from ovi_jax.synthetic.world import captions
from ovi_jax.synthetic.world import faces
from ovi_jax.synthetic.world import lamps
from ovi_jax.synthetic.world import scene as scenes
from ovi_jax.synthetic.world import sounds

FRAMES = 121
_RENDER = {
  scenes.BALL: balls.render,
  scenes.LAMP: lamps.render,
  scenes.FACE: faces.render,
}
CLIPS, TWO_BALLS, SOUNDS = "clips", "two_balls", "sounds"
VOICES = "voices"
WHAT = (CLIPS, TWO_BALLS, SOUNDS, VOICES)
SEEN, UNSEEN, ALL = "seen", "held_out", "all"
# Shares of one ball, two balls, a lamp, a face.
_KINDS = (0.34, 0.12, 0.25, 0.29)
_ALONE_OF = {
  TWO_BALLS: (0.0, 1.0, 0.0, 0.0),
  VOICES: (0.0, 0.0, 0.0, 1.0),
}
_STILL = 0.05  # share in which nothing happens
_ALONE = 0.04  # share without a sound track, and as many without a picture
_LONG = (3, 12)  # seconds of a sound, from and to
_CAPTIONS = 2


class Clip(NamedTuple):
  """A clip.

  Attributes:
    frames_THWC: uint8, or `None` for sound alone.
    wave_A: float32 in [-1, 1], or `None` for a film without sound track.
    captions: in either tag format.
    scene: all that there is to know.
  """

  frames_THWC: np.ndarray | None
  wave_A: np.ndarray | None
  captions: tuple[str, ...]
  scene: scenes.Scene

  @property
  def events(self) -> tuple[scenes.Event, ...]:
    return self.scene.events


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
  """Clips by number.

  Attributes:
    seed: another world for another seed.
    size: rows and columns of a picture.
    frames: of a clip, 1 + 4·k.
    fps: frames a second.
    rate: samples a second.
    what: "clips" of one length, "two_balls" for such clips alone (few others
      have as much to follow), "sounds" alone of 3 to 12 s, or "voices":
      speaking faces alone; of each clip's captions, one names the voice and
      one does not.
    pairs: "seen" leaves out clips whose colour and sound are a pair of
      `scenes.HELD_OUT`; "held_out" has no others; "all" has both.
    complete: every clip has a picture, a sound and events.
  """

  seed: int = 0
  size: int = 64
  frames: int = FRAMES
  fps: float = float(geometry.FPS)
  rate: int = geometry.SAMPLE_RATE
  what: str = CLIPS
  pairs: str = SEEN
  complete: bool = False

  def __post_init__(self):
    for name, known in (("what", WHAT), ("pairs", (SEEN, UNSEEN, ALL))):
      if (value := getattr(self, name)) not in known:
        raise ValueError(
          f"{name}: expected one of {', '.join(known)}, got {value!r}"
        )
    if self.seed < 0:
      raise ValueError(f"seed: expected 0 or more, got {self.seed}")
    if self.size < 16 or self.frames % 4 != 1 or min(self.fps, self.rate) <= 0:
      raise ValueError(
        "a world needs size >= 16, frames = 1 + 4·k, and positive rates; got"
        f" size {self.size}, frames {self.frames}, {self.fps} frames and"
        f" {self.rate} samples a second"
      )

  def clip(
    self, index: int, part: slice = slice(None), sound: bool = True
  ) -> Clip:
    """The clip of a number from 0; the same whenever it is asked for.

    Args:
      index: number of the clip.
      part: frames that are drawn.
      sound: whether its sound, always whole, is made too.
    """
    random = np.random.default_rng((self.seed, index))
    seconds = self._seconds(random)
    shown = self._scene(random, seconds)
    alone = random.random()
    complete = self.complete
    seen = self.what != SOUNDS and (complete or not alone < _ALONE)
    has_sound = not seen or complete or not alone > 1 - _ALONE
    made = dict.fromkeys(
      captions.caption(
        shown,
        random,
        tagged=bool(number % 2),
        seen=seen,
        has_sound=has_sound,
        names_voice=self.what != VOICES or (index + number) % 2 == 0,
      )
      for number in range(_CAPTIONS)
    )
    wave_A = None
    if has_sound and sound:
      samples = round(seconds * self.rate)
      wave_A = sounds.track(shown.events, samples, self.rate)
    return Clip(
      frames_THWC=self.render(shown, part) if seen else None,
      wave_A=wave_A,
      captions=tuple(made),
      scene=shown,
    )

  def render(
    self, shown: scenes.Scene, part: slice = slice(None)
  ) -> np.ndarray:
    """frames_THWC of a scene, uint8."""
    seconds_T = np.arange(self.frames)[part] / self.fps
    return _RENDER[shown.kind](shown, seconds_T, self.size)

  def _seconds(self, random: np.random.Generator) -> float:
    """Length: whole audio latents, as many as the picture has room for."""
    seconds = self.frames / self.fps
    if self.what == SOUNDS:
      seconds = random.uniform(*_LONG)
    each = geometry.SAMPLES_PER_AUDIO_LATENT
    return int(seconds * self.rate) // each * each / self.rate

  def _scene(self, random: np.random.Generator, seconds: float) -> scenes.Scene:
    """Draw until the pairs are wanted ones."""
    shares = _ALONE_OF.get(self.what, _KINDS)
    while True:
      kind = int(random.choice(len(shares), p=shares))
      still = not self.complete and random.random() < _STILL
      if kind < 2:
        shown = balls.sample(random, seconds, two=kind == 1, still=still)
      elif kind == 2:
        shown = lamps.sample(random, seconds, still)
      elif self.what == VOICES:
        shown = faces.sample(
          random, seconds, still, faces.TALKATIVE, faces.CLEAR_VOICES
        )
      else:
        shown = faces.sample(random, seconds, still)
      held_out = bool(shown.pairs & scenes.HELD_OUT)
      if self.pairs == ALL or held_out == (self.pairs == UNSEEN):
        return shown
