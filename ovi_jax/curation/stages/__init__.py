"""One stage per file; the interface is `ovi_jax.curation.stage`."""
