"""Deep metric learning experiments as a reproducible pipeline.

One module per stage; one file per dataset, loss and backbone.
"""
