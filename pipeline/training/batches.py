"""Which images are in each batch of each epoch: functions of (seed, epoch, place in the epoch), so that a resumed run
continues with the next batch. Both classes have `steps`, the number of batches in an epoch, and `epoch`, which gives
the batches."""

import numpy as np

from pipeline.base import sampling


class Shuffled:
    """All images in random order, taken in turn. An epoch is once through them, and its last batch may be smaller. With
    `steps` an epoch has this number of whole batches, and the next epoch goes on where it ended."""

    def __init__(self, images: int, batch_size: int, seed: int, steps: int | None = None):
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.steps = steps or -(-images // batch_size)
        self.in_epoch = steps * batch_size if steps else images

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch, int64 (batch_size,)."""
        turn, first = divmod((epoch - 1) * self.in_epoch, self.images)
        turns = -(-(first + self.in_epoch) // self.images)
        orders = [sampling.order(self.seed, turn + number, self.images) for number in range(1, turns + 1)]
        order = np.concatenate(orders)[first : first + self.in_epoch]
        return [order[start : start + self.batch_size] for start in range(0, self.in_epoch, self.batch_size)]


class ClassBalanced:
    """Proxy-AN's batches (docs/protocols.md): some classes, drawn without replacement, and a few images of each.

    The images of a class are taken in a shuffled order, which continues from one epoch to the next. When too few are
    left for another batch, the class is shuffled again. If a class has fewer images than a batch needs, images are
    drawn at random, with repeats. `labels` are int64 (images,), counted from 0. All classes are equally likely; with
    `by_class_size` a class is as likely as its number of images.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        samples_per_class: int,
        seed: int,
        steps: int,
        by_class_size: bool = False,
    ):
        self.members = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
        self.classes, self.samples = batch_size // samples_per_class, samples_per_class
        self.seed, self.steps = seed, steps
        weights = np.cumsum([len(members) if by_class_size else 1 for members in self.members])
        self.bounds = weights / weights[-1]
        self._next, self._taken = 1, np.zeros(len(self.members), np.int64)
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch, int64 (batch_size,), class by class."""
        if epoch < self._next:
            self._next, self._taken = 1, np.zeros_like(self._taken)
        while self._next < epoch:
            # For earlier epochs it only matters how often each class was drawn.
            self._taken += np.bincount(self._drawn(self._next).ravel(), minlength=len(self._taken))
            self._next += 1
        self._next += 1
        return [np.concatenate([self._take(label) for label in labels]) for labels in self._drawn(epoch)]

    def _drawn(self, epoch: int) -> np.ndarray:
        """The classes of each batch, int64 (steps, classes), in the order of their draws."""
        drawn: list[dict[int, None]] = [{} for _ in range(self.steps)]
        turn = 0
        # Drawing one after another and ignoring repeats is the same as drawing without replacement.
        while any(len(found) < self.classes for found in drawn):
            draws = sampling.uniform(self.seed, f"classes, turn {turn}", epoch, (self.steps, self.classes))
            for found, labels in zip(drawn, np.searchsorted(self.bounds, draws, "right").tolist(), strict=True):
                if len(found) < self.classes:
                    found.update(dict.fromkeys(labels))
            turn += 1
        return np.array([list(found)[: self.classes] for found in drawn])

    def _take(self, label: int) -> np.ndarray:
        """The rows of a class's next images, int64 (samples_per_class,)."""
        members, taken = self.members[label], int(self._taken[label])
        self._taken[label] += 1
        if len(members) < self.samples:
            draws = sampling.uniform(self.seed, f"repeats of class {label}", taken, (self.samples,))
            return members[(draws * len(members)).astype(np.int64)]
        turn, place = divmod(taken, len(members) // self.samples)
        shuffled, order = self._orders.get(label, (-1, members))
        if shuffled != turn:
            draws = sampling.uniform(self.seed, f"images of class {label}", turn, (len(members),))
            order = members[np.argsort(draws, kind="stable")]
            self._orders[label] = turn, order
        return order[place * self.samples : (place + 1) * self.samples]
