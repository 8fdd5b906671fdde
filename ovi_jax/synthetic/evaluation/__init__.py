"""Scores of generated clips of the world, from the mp4 alone.

`sight` tells what is seen, `hearing` what is heard, `facts` what the prompt
asked for; `sync` holds the times of both against each other. numpy only, no
networks; `python -m ovi_jax.synthetic.evaluation` makes the report.
"""
