"""A small world of clips with sound, drawn and sounded by numpy alone.

Bouncing balls, flashing lamps and talking faces, from a seed: as many clips as
asked for, at any size and rate, with captions and the truth about every event
that is both seen and heard.
"""

from ovi_jax.synthetic.world.scene import Event
from ovi_jax.synthetic.world.scene import Scene
from ovi_jax.synthetic.world.world import Clip
from ovi_jax.synthetic.world.world import World

__all__ = ["Clip", "Event", "Scene", "World"]
