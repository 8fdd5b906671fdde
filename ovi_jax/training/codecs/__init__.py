"""Training of the codecs and the text encoder.

They train with `training.trainer`, as stages do. `input` makes batches of
crops of clips; `assemble` makes one directory of weights from several runs.
"""
