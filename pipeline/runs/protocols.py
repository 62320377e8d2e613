"""The protocols: what the runs of each do, keep and show. Nothing else describes them."""

from dataclasses import dataclass
from typing import Literal

Protocol = Literal["test", "choose_epoch", "held_out", "raw_pixels", "untrained", "ensemble"]


@dataclass(frozen=True)
class Description:
    """What a run of a protocol does."""

    said: str
    """What it is, for people."""
    trained: bool = False
    trains_on: str = "train"
    """The manifest of its training images, if it has no subset."""
    on_held_out: bool = False
    """Whether the images that are searched are of held-out training classes, and not of the test set."""
    watched: bool = False
    """Whether its training evaluates epochs."""
    weights: tuple[str, ...] = ()
    """The weights that it keeps, by the rules that choose them. Each is evaluated in the end."""
    evaluated: int = 0
    """The number of networks that are evaluated in the end."""
    ending: str = ""
    """The text after the seed in a run's name."""
    plain: bool = False
    """Whether it shows what is reached without any training."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files of its weights."""
        return tuple(f"{rule}.pt" for rule in self.weights)


PROTOCOLS: dict[str, Description] = {
    "test": Description(
        "trained on all training classes and evaluated on the test set, as the papers do",
        trained=True,
        watched=True,
        weights=("best_test_epoch", "last_epoch"),
        evaluated=2,
    ),
    "choose_epoch": Description(
        "trained on one half of the training classes and evaluated on the other half; only its history is kept",
        trained=True,
        trains_on="held_out_train",
        on_held_out=True,
        watched=True,
        ending="_choose_epoch",
    ),
    "held_out": Description(
        "trained on all training classes, without evaluation, up to the epoch that was best in a choose_epoch run",
        trained=True,
        weights=("held_out",),
        evaluated=1,
        ending="_held_out",
    ),
    "raw_pixels": Description("the images themselves, without any training", plain=True),
    "untrained": Description("what the network gives before training, pooled", evaluated=1, plain=True),
    "ensemble": Description(
        "the embeddings of all seeds together, not to be compared with single runs", ending="_ensemble"
    ),
}
