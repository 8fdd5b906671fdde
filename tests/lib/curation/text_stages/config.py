"""The config of the engine's tests, for the command line."""

import ml_collections

from tests.lib.curation import harness


def get_config() -> ml_collections.ConfigDict:
  # Long enough to be killed in, also by who is slow to start.
  fields = {"measure__delay": 0.02, "measure__seen": ""}
  return harness.config("", ("",), shard_size=1, **fields)
