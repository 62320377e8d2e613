"""Benchmarks. Speeds are always ratios measured in one run.

`pipeline` is imported first, because it limits the processor's instructions, which must be done before torch is
imported.
"""

import pipeline  # noqa: F401
