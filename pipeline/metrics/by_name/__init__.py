"""One file for each metric that `metrics` of a recipe names: a function `metric(found, *, ...)` that gives numbers by
their names, as fractions, and `NAMES`, the names with their headings in tables.

A name is also the one in published.yaml, and K in it stands for the K of `recall_at`. The first name of a file is a
column of every table that does not choose its columns. Keyword arguments are keys in params.yaml, with their annotated
ranges. What a metric cannot be computed from is refused before training by a function `limits(split, seed, **settings)`
that yields a line for each problem, if the file has one.
"""
