"""The commands `ovi-sample`, `ovi-train` and `ovi-convert`.

A module each: flags, and what is called with them. In a clone the scripts
`sample.py`, `train.py` and `convert_torch_weights.py` are the same commands.
"""

from ovi_jax import interrupts

# Before the imports of the commands, which take seconds.
interrupts.setup()
