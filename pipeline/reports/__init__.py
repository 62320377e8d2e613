"""Pages to look at: what the runs of a grid gave, in one self-contained file."""
