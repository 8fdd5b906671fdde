"""Which records are held out for evaluation, by a hash of their origin."""

import hashlib


def chance(name: str, seed: int) -> float:
  """A number in [0, 1), the same for a name and seed on any machine.

  A record is held out where it is below the share: one more record, or a larger
  share, moves none of the others back.
  """
  hashed = f"{seed}:{name}".encode(errors="surrogateescape")
  return int.from_bytes(hashlib.sha256(hashed).digest()[:8], "big") / 2**64
