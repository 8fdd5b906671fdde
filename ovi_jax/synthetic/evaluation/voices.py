"""Voices of the synthetic world: which of them speaks, by reference or name.

The vocoder of the small Ovi keeps formants, and of pitches only multiples of
62.5 Hz. So a voice is told by the spectra of its vowels, held against those of
each voice as the world makes them and with such pitches.

  python -m ovi_jax.synthetic.evaluation voices --out=DIR [--count=64
    --seed=1000]
  python sample.py --prompts=DIR/own.csv --out=CLIPS …
  python -m ovi_jax.synthetic.evaluation --by_voice --clips=CLIPS

`voices` writes references (sound alone, 2 s of another clip each) and two
tables of prompts that do not name a voice: in `own.csv` a clip has a reference
of the voice that the world gave it, in `shuffled.csv` one of another voice. The
score is how often the voice of the reference is heard.
"""

import collections
import csv
import dataclasses
import functools
import io
import pathlib
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from ovi_jax import files
from ovi_jax import geometry
from ovi_jax import untrusted
from ovi_jax.evaluation import onsets
from ovi_jax.media import decode
from ovi_jax.media import mp4
from ovi_jax.media import wav
from ovi_jax.sampling import requests
from ovi_jax.synthetic.evaluation import audio_detectors
from ovi_jax.synthetic.evaluation import prompt_parser
from ovi_jax.synthetic.evaluation import scores
from ovi_jax.synthetic.world import captions
from ovi_jax.synthetic.world import scene
from ovi_jax.synthetic.world import world as worlds

OWN, SHUFFLED = "own", "shuffled"  # tables of prompts
REFERENCES = "references"  # folder beside them
SECONDS = 2.0  # of a reference
_LEAST = 2  # vowels of a reference
_ENOUGH = 100  # clips a prompt that are looked through
