"""Whether the lips move with the sound, by SyncNet (Chung and Zisserman, 2016).

Reads what the stage `cut` kept of a clip:
  "faces.npz": the crops of its face tracks; `crops.of_tracks` and `crops.pack`
    make it, their module says what is in it. Wanted where `speech` found a
    speaking face; not read otherwise.
  "audio.pcm": the whole sound of the clip, int16 little-endian mono at 16 kHz,
    which begins when the clip does.
"""
