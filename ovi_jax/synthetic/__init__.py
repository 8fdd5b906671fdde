"""The small Ovi that comes with the package, and its synthetic world."""

import pathlib

WEIGHTS = pathlib.Path(__file__).parent / "weights"  # of `sample.py`, if none
