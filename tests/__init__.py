"""Tests. `pipeline` comes first: it makes the threads of PyTorch wait in their sleep, which has to be set before torch."""

import pipeline  # noqa: F401
