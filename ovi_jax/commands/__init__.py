"""The commands `ovi-sample`, `ovi-train` and `ovi-convert`.

A module each: flags, and what is called with them. In a clone the scripts
`sample.py`, `train.py` and `convert_torch_weights.py` are the same commands.
"""
