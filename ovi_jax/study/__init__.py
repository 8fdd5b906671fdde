"""A blind preference study: people judge pairs of clips of several systems.

`settings` reads the study file, `build` re-encodes clips and writes the study's
folder (`manifest`), `assignment` decides who judges what, `database` keeps
votes, `server` and `page/` are the local web page, `bundle` is the same page
for crowd platforms. `statistics/` has the analysis, `report` writes it.
"""
