"""What all other packages use: files, errors, parameters, randomness by key, provenance."""
