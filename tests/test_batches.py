"""Batches: Proxy-AN's sampler against its rules in plain lists, its draws' odds, lengths of epochs, and resuming."""

import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.base.sampling import uniform
from pipeline.runs.run import Run
from pipeline.training.augment import Augment
from pipeline.training.batches import ClassBalanced, Shuffled
from pipeline.training.loading import StoredImages, training_batches
from pipeline.training.plan import plan_batches

RECIPE = read_params(Path(__file__).parent.parent / "papers/proxy_an/params.yaml").recipes["cub"]


def labels_of(sizes):
    """The labels of classes of these sizes, mixed."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(1).permutation(labels)


def planned(labels, batch_size, samples, recipe=RECIPE, whole_set=None, seed=5, **choices):
    changed = recipe.model_copy(update={"batch_size": batch_size, "samples_per_class": samples})
    run = Run("cub", changed, "proxy_an", {}, seed, source="params.yaml: recipes.cub", **choices)
    return plan_batches(run, torch.from_numpy(labels), whole_set or len(labels))


def literal(labels, batch_size, samples, by_size, seed, epochs):
    """The rules in plain lists and cursors (docs/protocols.md: batch sampler), with the same uniform draws."""
    members: dict[int, list[int]] = {label: [] for label in range(max(labels) + 1)}
    for image, label in enumerate(labels):
        members[label].append(image)
    sizes = [len(members[label]) if by_size else 1 for label in members]
    steps = len([count for count in range(0, len(labels), batch_size) if count + batch_size < len(labels)])
    if by_size:  # a subset, of which there is one batch at least
        steps = max(steps, 1)
    left: dict[int, list[int]] = {label: [] for label in members}
    shuffles: Counter[int] = Counter()
    takes: Counter[int] = Counter()
    found = []
    for epoch in range(1, epochs + 1):
        for step in range(steps):
            chosen: list[int] = []
            turn = 0
            while len(chosen) < batch_size // samples:
                shape = (steps, batch_size // samples)
                for draw in uniform(seed, f"classes, turn {turn}", epoch, shape)[step]:
                    shares = [sum(sizes[: label + 1]) / sum(sizes) for label in members]
                    label = next(label for label, share in enumerate(shares) if draw < share)
                    if label not in chosen and len(chosen) < batch_size // samples:
                        chosen.append(label)
                turn += 1
            batch = []
            for label in chosen:
                if len(members[label]) < samples:
                    draws = uniform(seed, f"repeats of class {label}", takes[label], (samples,))
                    batch += [members[label][int(draw * len(members[label]))] for draw in draws]
                else:
                    if len(left[label]) < samples:
                        draws = uniform(seed, f"images of class {label}", shuffles[label], (len(members[label]),))
                        left[label] = [image for _, image in sorted(zip(draws, members[label], strict=True))]
                        shuffles[label] += 1
                    batch += left[label][:samples]
                    del left[label][:samples]
                takes[label] += 1
            found.append((epoch, batch))
    return found


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=7),
    st.integers(1, 4),
    st.data(),
    st.booleans(),
    st.integers(0, 2**64 - 1),
)
def test_the_sampler_equals_its_rules_in_plain_lists(sizes, samples, data, by_size, seed):
    classes = data.draw(st.integers(1, len(sizes)), "classes")
    labels = labels_of(sizes)
    if classes * samples >= len(labels) and not by_size:
        with pytest.raises(BadInputError, match="use a smaller batch"):
            planned(labels, classes * samples, samples, seed=seed)
        return
    batches = planned(labels, classes * samples, samples, seed=seed, gamma=10 if by_size else None)
    expected = literal(labels.tolist(), classes * samples, samples, by_size, seed, 3)
    assert [(epoch, rows.tolist()) for epoch in (1, 2, 3) for rows in batches.epoch(epoch)] == expected


def test_a_class_gives_all_its_images_before_one_comes_again():
    labels = labels_of([7, 6, 2, 1])
    batches = planned(labels, 6, 3)
    assert batches.steps == 2, "12 of 16 images; the strict rule leaves out the last four"
    found = np.concatenate([rows for epoch in range(1, 60) for rows in batches.epoch(epoch)]).reshape(-1, 3)
    assert all(len(set(labels[three])) == 1 for three in found)
    for label, size in enumerate([7, 6]):
        turns = found[labels[found[:, 0]] == label]
        turns = turns[: len(turns) // 2 * 2].reshape(-1, 6)
        assert all(len(set(six)) == 6 for six in turns), "two takes of three in a turn, over the ends of epochs"
        assert len({tuple(six) for six in turns}) > 20, "each turn in an order of its own"
        assert len(set(turns.ravel())) == size
    pairs = found[labels[found[:, 0]] == 2]
    assert {len(set(three)) for three in pairs} == {1, 2}, "three of two images, at random"
    assert set(found[labels[found[:, 0]] == 3].ravel()) == set(np.flatnonzero(labels == 3))


def test_classes_are_drawn_in_proportion_to_their_sizes_or_alike():
    sizes = np.array([41, 20, 9, 4, 1, 1])
    labels = labels_of(sizes)
    for by_size, weights in ((True, sizes), (False, np.ones(6))):
        batches = ClassBalanced(labels, 9, 3, 7, 5000, by_size)
        drawn = labels[np.stack(batches.epoch(1))[:, ::3]]
        assert all(len(set(classes)) == 3 for classes in drawn), "without replacement"
        shares = weights / weights.sum()
        assert chisquare(np.bincount(drawn[:, 0], minlength=6), 5000 * shares).pvalue > 0.001
        # The second in proportion to what is left.
        second = shares[:, None] * shares / (1 - shares[:, None])
        pairs = np.bincount(drawn[:, 0] * 6 + drawn[:, 1], minlength=36)[~np.eye(6, dtype=bool).ravel()]
        assert chisquare(pairs, 5000 * second[~np.eye(6, dtype=bool)]).pvalue > 0.001


def test_an_epoch_of_steps_goes_on_where_the_last_one_ended():
    batches = Shuffled(10, 4, 3, steps=4)
    assert batches.steps == 4
    epochs = [batches.epoch(epoch) for epoch in range(1, 6)]
    assert all([len(rows) for rows in epoch] == [4] * 4 for epoch in epochs)
    stream = np.concatenate([rows for epoch in epochs for rows in epoch])
    for turn in range(8):
        assert sorted(stream[10 * turn : 10 * turn + 10].tolist()) == list(range(10)), turn
    assert np.array_equal(stream[:10], np.concatenate(Shuffled(10, 4, 3).epoch(1))), "the first turn is the first epoch"
    for epoch in (4, 2):
        assert all(map(np.array_equal, Shuffled(10, 4, 3, steps=4).epoch(epoch), epochs[epoch - 1])), epoch
    for kind in (None, 3):
        recipe = RECIPE.model_copy(update={"head": "linear", "epoch_steps": 7})
        assert planned(labels_of([9, 5, 4, 2]), 6, kind, recipe).steps == 7


def test_batches_are_pinned():
    # A change of these would change every result silently.
    labels = np.repeat(np.arange(4), [3, 4, 1, 5])
    found = [rows.tolist() for rows in ClassBalanced(labels, 4, 2, 3, 2).epoch(2)]
    assert found == [[12, 9, 3, 6], [4, 5, 7, 7]]
    found = [rows.tolist() for rows in ClassBalanced(labels, 4, 2, 3, 2, by_class_size=True).epoch(1)]
    assert found == [[8, 10, 5, 6], [4, 3, 0, 2]]
    assert [rows.tolist() for rows in Shuffled(5, 3, 3).epoch(2)] == [[3, 2, 1], [4, 0]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [None, 3], ids=["shuffled", "class-balanced"])
def test_a_resumed_run_gets_the_very_next_batch(kind, workers):
    labels = labels_of([9, 5, 4, 2])
    pixels = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 1, 4, 4).contiguous()
    recipe = RECIPE.model_copy(update={"augment": [{"name": "shift", "pixels": 2}, {"name": "flip"}], "input_size": 4})
    images = StoredImages(pixels, torch.from_numpy(labels), Augment(recipe, 5))

    def tail(epoch, step):
        batches = planned(labels, 6, kind, RECIPE.model_copy(update={"head": "linear"}))
        loader = training_batches(images, batches, range(epoch, 5), workers, torch.device("cpu"), first_step=step)
        return batches.steps, [torch.cat([part.flatten() for part in batch]).tolist() for batch in loader]

    steps, whole = tail(1, 0)
    assert steps == (4 if kind is None else 3) and len(whole) == 4 * steps
    assert all(first != second for first, second in pairwise(whole))
    for epoch, step in ((1, 1), (3, 0), (3, 2), (4, steps - 1)):
        assert tail(epoch, step)[1] == whole[(epoch - 1) * steps + step :], f"epoch {epoch}, step {step}"


def test_going_back_to_an_earlier_epoch_gives_the_same():
    batches = ClassBalanced(labels_of([9, 5, 4, 2]), 6, 3, 5, 3)
    first = [batches.epoch(epoch) for epoch in (1, 2, 3)]
    for epoch in (2, 1, 3, 3):
        assert np.array_equal(batches.epoch(epoch), first[epoch - 1])


def test_an_epoch_of_sop_and_those_behind_it_cost_little():
    """Of the processor: 0.6 s an epoch, and 0.03 s for each that lies behind, where images need not be shuffled."""
    sizes = np.random.default_rng(0).multinomial(59551 - 2 * 11318, np.ones(11318) / 11318) + 2
    batches = ClassBalanced(np.repeat(np.arange(11318), sizes), 80, 2, 0, 744)
    start = time.process_time()
    assert len(batches.epoch(21)) == 744
    assert time.process_time() - start < 6


def test_a_partial_epoch_is_as_long_as_the_rate_of_all_images():
    kept = labels_of([3, 3, 3, 3])  # int(11 * 0.3) of each
    assert planned(kept, 6, 3, whole_set=44, rate=0.3).steps == 2, "int(44 * 0.3) = 13, though 12 images give 1"
    assert planned(kept, 6, 3, whole_set=40, rate=0.3).steps == 1, (
        "int(40 * 0.3) = 12: strictly, the second is left out"
    )
    assert planned(kept, 6, 3).steps == 1
    linear = RECIPE.model_copy(update={"head": "linear"})
    assert planned(kept, 5, None, linear, whole_set=44, rate=0.3).steps == 3, "shuffled: all that the subset has"


@pytest.mark.parametrize("subset", [{"rate": 0.1, "whole_set": 60}, {"gamma": 50}], ids=["partial", "imbalanced"])
def test_a_subset_smaller_than_a_batch_runs_one_batch_with_repeats(subset):
    labels = labels_of([2, 1, 3])
    batches = planned(labels, 9, 3, **subset)
    assert batches.steps == 1
    for epoch in range(1, 8):
        (rows,) = batches.epoch(epoch)
        assert len(rows) == 9 and np.bincount(labels[rows]).tolist() == [3, 3, 3]
        assert len(set(rows[labels[rows] == 2])) == 3 and len(set(rows[labels[rows] == 1])) == 1


@pytest.mark.parametrize(
    ("sizes", "batch_size", "samples", "options", "message"),
    [
        ([4, 4], 9, None, {}, r"batch_size: 9 is more than the 8 images of data/splits/cub/train\.csv"),
        ([5, 4], 4, None, {}, r"batch_size: 4 leaves one of the 9 images of \S+ for the last batch, which the head's"),
        ([9, 9], 9, 3, {}, r"batch_size: 9 with 3 images a class needs more classes than the 2 of \S+train\.csv"),
        ([3, 3], 6, 3, {}, r"batch_size: 6 leaves no whole batch of the 6 images of \S+train\.csv"),
        ([3, 3], 7, None, {"rate": 0.2}, r"batch_size: 7 is more than the 6 images of \S+partial_0\.2\.csv"),
        (
            [9, 9],
            9,
            3,
            {"protocol": "choose_epoch"},
            r"batch_size: .* classes than the 2 of data/splits/cub/held_out_train\.csv",
        ),
        (
            [9, 9],
            9,
            3,
            {"gamma": 50},
            r"batch_size: .* than the 2 of data/subsets/cub/imbalanced_50_5\.csv",
        ),
    ],
)
def test_too_few_images_or_classes_are_refused(sizes, batch_size, samples, options, message):
    with pytest.raises(BadInputError, match=r"^params\.yaml: recipes\.cub\." + message):
        planned(labels_of(sizes), batch_size, samples, **options)


def test_a_last_batch_of_one_image_is_taken_where_no_batch_norm_sees_it():
    batches = planned(labels_of([5, 4]), 4, None, RECIPE.model_copy(update={"head": "linear"}))
    assert [len(rows) for rows in batches.epoch(1)] == [4, 4, 1]
