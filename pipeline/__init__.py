"""Deep metric learning experiments as a reproducible pipeline.

One module per stage; one file per dataset, loss and backbone.
"""

import os

# A thread of PyTorch's that waits for another sleeps and does not spin. Spinning, two threads on two busy cores trained
# the small network at a twentieth of the speed. It changes no result and has to be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
