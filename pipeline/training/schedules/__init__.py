"""One file for each schedule: a function `schedule(epochs, steps, *, ...)` that gives a `Factor`.

`epochs` is the length of the whole recipe, and `steps` the number of steps in an epoch. The keyword arguments, with
their annotated ranges, are the keys in params.yaml. It raises `ValueError` for values that are impossible together.

A factor is a function of (epoch, step), both counted from 1, which multiplies all learning rates of that step. It has
no state, so a resumed run goes on with the same rates.
"""

from collections.abc import Callable

Factor = Callable[[int, int], float]
