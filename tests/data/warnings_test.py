"""Writing and reading a dataset prints no warnings."""

import subprocess
import sys

PROGRAM = """
import sys
from ovi_jax.data import builder
from tests.lib import random_records
records = {"train": [random_records.record(0)]}
builder.write(sys.argv[1], records, geometry=random_records.GEOMETRY)
assert builder.read(sys.argv[1])[0].id
"""


def test_writing_and_reading_a_dataset_prints_no_warnings(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, str(tmp_path / "data")],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert "deprecated" not in done.stderr and "tfds" not in done.stderr
