"""The video autoencoder of Wan2.2-TI2V-5B: causal in time, streaming.

`config` holds the sizes, `codec` what callers use (steps, whole clips, caches);
`network` is encoder and decoder.
"""
