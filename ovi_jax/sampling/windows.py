"""Clips longer than the model makes at once: windows with an overlap.

A long clip is generated window by window. Each window has the same size, so
that one program denoises all of them. Its first latent frames, the overlap, are
given: they are the last ones of the window before, with all sound that has been
generated from there on. The last window begins early enough to end with the
clip, so its overlap may be longer. An extended file is the window before the
first: its end is encoded.

Time. Window w begins at latent frame s_w of the clip, that is at the last of
this latent's four frames, at 4 s_w / 24 seconds, and with the audio latent that
is nearest to that time. Its latent frame j is the clip's latent frame s_w + j.

The first latent of a window. The model knows a first latent as that of a single
frame, so this frame is encoded as a first frame is; the other latents of the
overlap are those that were generated.

Decoding. Video latents of all windows go through the causal decoder as one
sequence, whose cache is kept between windows: the frames are those of one
clip's latents, without a seam. Sound is decoded window by window. In the middle
of the overlap, both waves are decoded from equal latents with others around
them; they are cross-faded there, where they differ at all.

Memory is that of a window, whatever the number of windows.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ovi_jax import geometry
from ovi_jax import prompt as prompts
from ovi_jax.modality import AV

SEPARATOR = "|"  # between the prompts of windows
MAX_CROSSFADE = geometry.SAMPLE_RATE // 10  # samples
MAX_LATENT_FRAMES = geometry.MAX_LATENTS["latent_frames"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
  """A part of a clip that is denoised at once.

  Attributes:
    start: latent frame of the clip at which it begins.
    given: latent frames at its beginning that are given.
    audio_start: audio latent of the clip at which it begins.
    audio_given: audio latents at its beginning that are given.
  """

  start: int
  given: int
  audio_start: int
  audio_given: int


def split_prompt(prompt: str) -> tuple[str, ...]:
  """The prompts of windows.

  Args:
    prompt: one for all, or one for each window with `|` between them.

  Raises:
    ValueError: one of them is empty.
  """
  parts = tuple(part.strip() for part in prompt.split(SEPARATOR))
  if not all(map(prompts.clean, parts)):
    raise ValueError(
      f"a prompt between two {SEPARATOR!r} is empty; write one for each window,"
      f" or one for all without {SEPARATOR!r}"
    )
  return parts


def joined_prompt(prompts_of: str | Sequence[str]) -> str:
  """The prompts of windows as one text; one prompt as it is.

  Raises:
    ValueError: one of several has a `|`.
  """
  if isinstance(prompts_of, str):
    return prompts_of
  if any(SEPARATOR in text for text in prompts_of):
    raise ValueError(f"a prompt of a window cannot have a {SEPARATOR!r}")
  return f" {SEPARATOR} ".join(prompts_of)


def check_one_prompt(clips: Iterable[str | Sequence[str]]) -> None:
  """Check that no clip has prompts for several windows.

  Raises:
    ValueError: one has.
  """
  for given in clips:
    if not isinstance(given, str) and len(given) > 1:
      raise ValueError(
        f"{len(given)} prompts for the windows of a clip, whose length is not"
        " given; add seconds, or extend"
      )


def plan(
  latent_frames: int, window: geometry.Clip, overlap: int, given: int = 0
) -> tuple[Window, ...]:
  """The windows of a clip.

  Args:
    latent_frames: of the clip.
    window: sizes of each window, at most as long as the clip.
    overlap: latent frames that a window has in common with the one before, at
      least; less than a window has.
    given: latent frames at the beginning of the clip that are given.

  Returns:
    The windows in order. The sound of a given beginning is not counted here,
    see `conditions.Extended`.

  Raises:
    ValueError: windows would have nothing but the overlap.
  """
  length = window.latent_frames
  if (latent_frames > length <= overlap) or given >= length:
    raise ValueError(
      f"window_overlap must be less than the {length} latent frames of a"
      f" window, got {overlap}"
    )
  found = [Window(start=0, given=given, audio_start=0, audio_given=0)]
  while (end := found[-1].start + length) < latent_frames:
    start = min(end - overlap, latent_frames - length)
    audio_start = audio_place(start)
    audio_end = found[-1].audio_start + window.audio_latents
    found.append(
      Window(
        start=start,
        given=end - start,
        audio_start=audio_start,
        audio_given=max(0, audio_end - audio_start),
      )
    )
  return tuple(found)


def audio_place(latent_frame: int) -> int:
  """The audio latent nearest to the last frame of a video latent."""
  seconds = geometry.VIDEO_STRIDES[0] * latent_frame / geometry.FPS
  return round(seconds * geometry.AUDIO_LATENT_RATE)


def masks(window: Window, clip: geometry.Clip) -> AV[np.ndarray]:
  """given_T of each modality of a window after the first."""
  return AV(
    np.arange(clip.latent_frames) < window.given,
    np.arange(clip.audio_latents) < window.audio_given,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Before:
  """An extended file, as it is shown before what is generated.

  Attributes:
    frames: opens its frames, frame_HWC, all of them.
    count: of frames.
    wave: its sound, as long as the frames; silence where it has none.
    overlap: frames at its end that are given: those of the first latents of
      the clip.
    sound_given: samples at the beginning of the clip's sound that are given.
  """

  frames: Callable[[], Iterator[np.ndarray]]
  count: int
  wave: np.ndarray
  overlap: int
  sound_given: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
  """What a long clip is made by; each function is called in order of windows.

  Attributes:
    denoise: latents video_THWC and audio_TC of a window, by its number, the
      masks of given latents and these latents; for the first window both are
      `None`: what is given of it is known elsewhere.
    encode_frame: latent_HWC of a first frame_HWC, uint8.
    decode_video: frames_THWC, uint8, of each of a sequence of latents_HWC.
    decode_audio: wave_A of latents_TC.
  """

  denoise: Callable[[int, AV[Any] | None, AV[Any] | None], AV[np.ndarray]]
  encode_frame: Callable[[np.ndarray], np.ndarray]
  decode_video: Callable[[Iterator[np.ndarray]], Iterator[np.ndarray]]
  decode_audio: Callable[[np.ndarray], np.ndarray]


class LongClip:
  """Generates a clip while its frames are read."""

  def __init__(
    self,
    plan_of: Sequence[Window],
    size: geometry.Clip,
    steps: Steps,
    before: Before | None = None,
  ):
    """Generate nothing yet.

    Args:
      plan_of: the windows.
      size: of each window.
      steps: see `Steps`.
      before: an extended file.
    """
    self._windows, self._size, self._steps = tuple(plan_of), size, steps
    self._before, self._keep = before, False
    self._latents: list[AV[np.ndarray]] = []  # new ones of each window
    self._anchors: dict[int, np.ndarray] = {}  # frames that windows begin with
    self._ready: list[np.ndarray] = []  # parts of sound that were not taken
    self._sound = SoundJoiner()

  def frames(self, keep_latents: bool = False) -> Iterator[np.ndarray]:
    """Generate the clip.

    Args:
      keep_latents: whether latents stay in memory.

    Yields:
      Frames, uint8 RGB [a few frames, H, W, 3], in order.
    """
    self._keep = keep_latents
    tail: list[np.ndarray] = []
    if self._before is not None:
      yield from self._frames_before(tail)
    starts = {window.start for window in self._windows[1:]}
    chunks = self._steps.decode_video(self._video_latents())
    for index, chunk_THWC in enumerate(chunks):
      if index in starts:
        self._anchors[index] = chunk_THWC[-1]
      yield _blended(chunk_THWC, tail, self._before)

  def joined_latents(self) -> AV[np.ndarray]:
    """Latents video_THWC and audio_TC of all windows, if they were kept."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *self._latents)

  def take_sound(self) -> np.ndarray:
    """The samples that follow those taken before and are decoded by now."""
    taken = [np.zeros(0, np.float32), *self._ready]
    self._ready.clear()
    return np.concatenate(taken)

  def _frames_before(self, tail: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames of the extended file; the overlap is put into `tail`."""
    before = self._before
    assert before is not None
    # Its sound up to the overlap; the rest is joined with that of the windows.
    start = _offset(before)
    self._ready.append(
      self._sound.begin(before.wave, start, before.sound_given)
    )
    for number, frame_HWC in enumerate(before.frames()):
      if number < before.count - before.overlap:
        yield frame_HWC[None]
      else:
        tail.append(frame_HWC)

  def _video_latents(self) -> Iterator[np.ndarray]:
    """Latents_HWC of all windows; a window is denoised when it is reached."""
    previous: AV[Any] = AV()
    last = None
    for number, window in enumerate(self._windows):
      given = mask = None
      if last is not None:
        mask = masks(window, self._size)
        given = self._given(window, last, previous)
      previous = self._steps.denoise(number, mask, given)
      self._add_sound(number, previous.audio)
      # The context of an extended file is decoded, too.
      new = previous.video[window.given if number else 0 :]
      if self._keep:
        begin = window.audio_given if number else 0
        self._latents.append(AV(new, previous.audio[begin:]))
      last = window
      yield from new

  def _given(
    self, window: Window, last: Window, previous: AV[np.ndarray]
  ) -> AV[np.ndarray]:
    """Latents of a window where they are given, zeros elsewhere."""
    video_THWC = np.zeros_like(previous.video)
    audio_TC = np.zeros_like(previous.audio)
    first = window.start - last.start
    video_THWC[: window.given] = previous.video[first:]
    frame_HWC = self._anchors.pop(window.start)
    video_THWC[0] = self._steps.encode_frame(frame_HWC)
    first = window.audio_start - last.audio_start
    audio_TC[: window.audio_given] = previous.audio[first:]
    return AV(video_THWC, audio_TC)

  def _add_sound(self, number: int, latents_TC: np.ndarray) -> None:
    """Decode a window's sound and join it to that before."""
    samples = geometry.SAMPLES_PER_AUDIO_LATENT
    window, rest = self._windows[number], self._windows[number + 1 :]
    base = 0 if self._before is None else _offset(self._before)
    self._ready.append(
      self._sound.add(
        self._steps.decode_audio(latents_TC),
        base + window.audio_start * samples,
        base + rest[0].audio_start * samples if rest else None,
      )
    )


def _offset(before: Before) -> int:
  """Samples of an extended file before the clip that is generated begins."""
  frames = before.count - before.overlap
  return round(frames / geometry.FPS * geometry.SAMPLE_RATE)


def _blended(
  chunk_THWC: np.ndarray, tail: list[np.ndarray], before: Before | None
) -> np.ndarray:
  """Decoded frames; in the overlap, they replace the file's little by little.

  Args:
    chunk_THWC: decoded frames.
    tail: the file's frames of the overlap that are left; used ones are removed.
    before: the extended file.
  """
  if before is None or not tail:
    return chunk_THWC
  made = chunk_THWC.astype(np.float32)
  for row in range(len(chunk_THWC)):
    weight = 1 - len(tail) / (before.overlap + 1)
    frame_HWC = tail.pop(0).astype(np.float32)
    made[row] = frame_HWC + weight * (made[row] - frame_HWC)
  return np.rint(made).astype(np.uint8)


class SoundJoiner:
  """Joins waves that overlap.

  Where two waves overlap, the first is cross-faded into the second over at most
  a tenth of a second in the middle. Equal samples stay what they are.
  """

  def __init__(self):
    self._held = np.zeros(0, np.float32)  # of the last wave, not given out
    self._place = 0  # of its first sample

  def begin(self, wave_A: np.ndarray, start: int, overlap: int) -> np.ndarray:
    """Sound before the first window.

    Args:
      wave_A: from sample 0 on.
      start: sample at which the first window begins.
      overlap: samples from there on that the window is given; the rest of the
        wave is only heard up to where it ends.

    Returns:
      The samples that no window changes.
    """
    end = start + overlap if overlap else len(wave_A)
    wave_A = wave_A[:end]
    fade = min(MAX_CROSSFADE, overlap // 2 or MAX_CROSSFADE, len(wave_A))
    middle = start + overlap // 2 if overlap else end - fade // 2
    place = max(0, middle - fade // 2)
    self._held, self._place = wave_A[place : place + fade], place
    return wave_A[:place]

  def add(
    self, wave_A: np.ndarray, start: int, following: int | None
  ) -> np.ndarray:
    """Add a window's wave.

    Args:
      wave_A: its samples.
      start: place of the first sample.
      following: place at which the next window begins; `None` for the last.

    Returns:
      The samples that follow those given out and that no later window changes.
    """
    before = self._place - start  # samples that were given out already
    wave_A = np.array(wave_A[max(0, before) :], np.float32)
    if before < 0:
      wave_A = np.pad(wave_A, (-before, 0))
    count = min(len(self._held), len(wave_A))
    if count and before >= 0:
      weight = (np.arange(count, dtype=np.float32) + 1) / (count + 1)
      held = self._held[:count]
      wave_A[:count] = held + weight * (wave_A[:count] - held)
    if following is None:
      return wave_A
    overlap = max(0, self._place + len(wave_A) - following)
    fade = min(MAX_CROSSFADE, overlap // 2)
    until = following + (overlap - fade) // 2 - self._place
    until = min(max(0, until), len(wave_A))
    self._held = wave_A[until : until + fade]
    self._place += until
    return wave_A[:until]


def seconds_of(latent_frames: int) -> float:
  """Length of a clip of some latent frames."""
  stride = geometry.VIDEO_STRIDES[0]
  return (1 + stride * (latent_frames - 1)) / geometry.FPS
