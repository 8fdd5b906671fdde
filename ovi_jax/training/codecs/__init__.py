"""Training of the codecs and the text encoder.

`settings` is a run's config, `table` has a task for each component, `input`
makes batches of clips' crops, `run` puts them into the loop of all stages;
`assemble` makes one directory of weights of several runs.
"""
