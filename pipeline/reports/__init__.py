"""Report pages: the results of a grid's runs, in one self-contained file."""
