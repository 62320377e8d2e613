"""Results as one thing to hand on: a bundle of a grid's files, what can be checked in it, and its runs made again."""
