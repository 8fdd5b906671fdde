"""One stage a file; see `ovi_jax.curation.stage` for what a stage is."""
