"""What every room stands on: files, errors, parameters, randomness by key, provenance."""
