"""Speed, always as ratios measured in one run.

`pipeline` comes first: it holds the processor's instructions, which has to be done before torch comes.
"""

import pipeline  # noqa: F401
