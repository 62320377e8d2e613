"""The learning rates stay as they are."""

from pipeline.training.schedules import Factor


def schedule(epochs: int, steps: int) -> Factor:
    """1 in every step."""
    return lambda epoch, step: 1.0
