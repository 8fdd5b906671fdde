"""The instruction of a caption request, and of a repair request.

The response format is `responses.schema`.
"""

from ovi_jax.curation.captioning import responses

_VIDEO_FIELDS = """\
"visual": one paragraph on what happens, in the order it happens: who and what \
is there, how it looks, the place, the light, the camera and how it moves, \
every visible action. Where somebody speaks, write who speaks, then the words \
as <S>words<E>, in the place where they are said. Use these two tags for \
nothing else, and put all speech that can be understood between them, word for \
word, in the language it is in.
"""
_AUDIO_FIELDS = """\
"speech": the list of everything that is said, in order{agree}; an empty list \
if nobody speaks or nothing can be understood.
"audio": one or two sentences on how everything sounds, without repeating the \
words. Of each voice: gender, age, accent, pitch, prosody, emotion and rate. \
Of the rest: what makes each sound, the ambience, the music, the acoustics of \
the place.
"speakers": one object for each voice that is heard, with "gender", "age", \
"accent", "pitch", "prosody", "emotion" and "rate", each a few words; \
"unclear" where it cannot be told; an empty list without voices.
"sounds": an object with "effects" (sounds and what makes them), "ambience", \
"music" (genre, instruments, mood) and "acoustics" (the room or open space, \
closeness, noise), each a few words; "none" for what is not there.
"""
_MATCH_VISUAL = ', the same words as between the tags of "visual"'


def for_clip(has_video: bool, has_audio: bool) -> str:
  """The instruction for a clip with frames, with sound, or both."""
  given = {
    (True, True): "frames of a short video, evenly spaced, and all its sound",
    (True, False): "frames of a short silent video, evenly spaced",
    (False, True): "a sound recording",
  }[has_video, has_audio]
  parts = [
    f"You are given {given}. Describe it in English. Say only what is seen or"
    " heard; guess no names.\nAnswer with one JSON object and nothing else. It"
    " has:\n"
  ]
  if has_video:
    parts.append(_VIDEO_FIELDS)
  if has_audio:
    parts.append(_AUDIO_FIELDS.format(agree=_MATCH_VISUAL if has_video else ""))
  return "".join(parts)


def for_repair(error: responses.InvalidResponse) -> str:
  """The message after an invalid response."""
  return (
    f"That answer cannot be used: {error}. Answer again with the whole JSON"
    " object, put right, and nothing else."
  )
