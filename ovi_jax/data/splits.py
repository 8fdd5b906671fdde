"""Assigns records to held-out splits by a hash of their origin."""

import hashlib


def chance(name: str, seed: int) -> float:
  """A pseudorandom number for a name, the same on any machine.

  A record is held out where the number is below the held-out share, so adding
  records, or raising the share, moves no record back to training.

  Args:
    name: of the origin.
    seed: of the assignment.

  Returns:
    A number in [0, 1).
  """
  hashed = f"{seed}:{name}".encode(errors="surrogateescape")
  return int.from_bytes(hashlib.sha256(hashed).digest()[:8], "big") / 2**64
