"""Tests. `pipeline` comes first: it lets PyTorch's threads sleep while they wait, which has to be set before torch."""

import pipeline  # noqa: F401
