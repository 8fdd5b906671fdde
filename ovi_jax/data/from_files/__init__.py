"""Files and their captions as a dataset: the import of own clips.

`listing` finds files and captions, `windows` turns one file into clips of the
size that training reads, `run` does that for all of them in processes and
writes the dataset, `sheet` draws what was imported.
"""
