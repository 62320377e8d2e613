"""Deep metric learning experiments as a reproducible pipeline: one module per stage, one file per dataset, loss and backbone."""
