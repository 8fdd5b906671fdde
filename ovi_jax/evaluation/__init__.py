"""Metrics of generated clips, of any model.

`clips` lists folders, `features` caches what extractors compute of each clip,
`rules` turns features into values, `protocols` says which scores make up a
protocol, and `report` writes them side by side for several systems, with a
check on clips that are known to be good or bad. Command:
`python -m ovi_jax.evaluation`.
"""
