"""Stage: partial and imbalanced subsets of the training manifest, and folds of it: data/splits -> data/subsets.

The first two are Proxy-AN's settings (Peng et al. 2026, section on partial and imbalanced data), as in their code:

- `partial_<rate>.csv` has the first int(n * rate) of each class's n images, sorted by the names of their files in the
  published archive, as in torchvision's ImageFolder. It is the same for every seed.
- `imbalanced_<gamma>_<seed>.csv`: each class's images are shuffled by the seed. Class k of C keeps the first
  max(1, int(N1 * gamma ** (-k / (C - 1)))) images, where N1 is the size of the smallest class, and k = 0 ... C-1 counts
  classes by the sorted names of their folders, not by their numbers.

The seed 2024, their default, gives the authors' own images, which their code fixes. With any other seed, a class's
shuffle depends only on the seed and the class's label.

Folds are for a search of settings (docs/search.md). `fold_<k>of<n>_test.csv` has the k-th of n parts of the training
classes, in the order of their labels and of about the same number of classes; `fold_<k>of<n>_train.csv` has the rest.
Musgrave, Belongie and Lim (2020, arXiv 2003.08505) did so with n = 4.

The rows of a subset are in the order of the index.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.command import exit_with
from pipeline.base.files import BadInputError, whole
from pipeline.base.names import checked_name
from pipeline.data.checksums import foreign
from pipeline.data.index import FILE as INDEX
from pipeline.data.index import read_index
from pipeline.data.manifests import Row, read_manifest, write_manifests
from pipeline.data.packed import read_originals
from pipeline.runs.grid import grid_runs

RATES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
GAMMAS = [10, 20, 50, 100, 150]
FOLDS = [4]

AUTHORS_SEED = 2024
"""The default seed of Proxy-AN's code. Their imbalanced subsets follow from it."""


def by_label(rows: list[Row]) -> dict[int, list[Row]]:
    """Label -> the rows of the class, in the order of labels."""
    classes = defaultdict(list)
    for row in rows:
        classes[row.label].append(row)
    return dict(sorted(classes.items()))


def folder_of(class_name: str) -> str:
    """The name of a class's folder in the authors' layout. Their converter writes blanks as _ and leaves slashes out.
    On Cars196 this changes the ranks of three training classes."""
    return class_name.replace(" ", "_").replace("/", "")


def partial(rows: list[Row], rate: float, originals: dict[str, str] | None = None) -> list[Row]:
    """The first int(n * rate) images of each class, 0 < rate <= 1, sorted by name, or by the original name if
    `originals` has it. Raises `BadInputError` if a class keeps no image.

    The product is computed in binary floating point, as by the authors: of 90 images a rate of 0.7 keeps 62.
    """
    if not 0 < rate <= 1:
        raise BadInputError(f"the rate of a partial subset is above 0 and at most 1, not {rate}")
    classes = by_label(rows)
    empty = [label for label, members in classes.items() if not int(len(members) * rate)]
    if empty:
        raise BadInputError(f"at the rate {rate} the classes with the labels {empty} keep no image")
    chosen: list[Row] = []
    for members in classes.values():
        chosen += by_file_name(members, originals)[: int(len(members) * rate)]
    return sorted(chosen)


def by_file_name(members: list[Row], originals: dict[str, str] | None) -> list[Row]:
    """The images of a class in the order of torchvision's ImageFolder: by name, or by the name in `originals`."""
    return sorted(members, key=lambda row: (originals or {}).get(row.name, row.name))


def imbalanced(
    rows: list[Row], gamma: float, seed: int, class_names: dict[int, str], originals: dict[str, str] | None = None
) -> list[Row]:
    """A long-tailed subset: the first class by name keeps as many images as the smallest class has, and the last class
    keeps 1/gamma of them. `class_names` is label -> name. Raises `BadInputError` for an impossible gamma or seed.

    With the seed `AUTHORS_SEED` these are the images of the authors' code: one `RandomState` shuffles class after
    class, in the order of folder names, each from the order of `by_file_name`.
    """
    if not 1 <= gamma <= 10**6 or not 0 <= seed < 2**64:
        raise BadInputError(f"gamma is at least 1 and at most 10**6, a seed is from 0 to 2**64 - 1: {gamma}, {seed}")
    classes = by_label(rows)
    smallest = min(map(len, classes.values()))
    theirs = np.random.RandomState(AUTHORS_SEED)
    chosen = []
    for rank, label in enumerate(sorted(classes, key=lambda label: folder_of(class_names[label]))):
        members = classes[label]
        kept = max(1, int(smallest * gamma ** (-rank / max(1, len(classes) - 1))))
        if seed == AUTHORS_SEED:
            members = by_file_name(members, originals)
            places = theirs.permutation(len(members))
        else:
            # The raw numbers of Philox are the same in every release of numpy. Generator.permutation may change.
            words = np.random.Philox(key=np.array([seed, label], np.uint64)).random_raw(len(members))
            places = np.argsort(words, kind="stable")
        chosen += [members[place] for place in places[:kept]]
    return sorted(chosen)


def folds(rows: list[Row], count: int) -> dict[str, list[Row]]:
    """The manifests, by name, of `count` folds of the training classes. Raises `BadInputError` if there are not as many
    classes."""
    labels = sorted({row.label for row in rows})
    if not 2 <= count <= len(labels):
        raise BadInputError(f"folds are at least 2 and at most as many as the {len(labels)} training classes: {count}")
    found = {}
    for k in range(count):
        part = set(labels[k * len(labels) // count : (k + 1) * len(labels) // count])
        found[f"fold_{k + 1}of{count}_train"] = [row for row in rows if row.label not in part]
        found[f"fold_{k + 1}of{count}_test"] = [row for row in rows if row.label in part]
    return found


def asked(grids: list[str], dataset: str) -> dict[str, dict[Any, None]]:
    """The subsets of a dataset that grids ask for: `rate` -> rates, `gamma` -> pairs of gamma and seed, `fold` ->
    numbers of folds."""
    wanted: dict[str, dict[Any, None]] = {"rate": {}, "gamma": {}, "fold": {}}
    for run in (run.run for grid in grids for run in grid_runs(grid) if run.run.dataset == dataset):
        if run.rate is not None:
            wanted["rate"][run.rate] = None
        elif run.gamma is not None:
            wanted["gamma"][run.gamma, run.seed] = None
        elif run.fold is not None:
            wanted["fold"][int(run.fold.partition("of")[2])] = None
    return wanted


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.subsets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="a dataset that was split, such as cub")
    parser.add_argument(
        "--rates", type=float, nargs="*", default=RATES, help="rates of partial subsets; 0.1 ... 1.0 if not given"
    )
    parser.add_argument(
        "--gammas", type=int, nargs="*", default=GAMMAS, help="gammas of imbalanced subsets; 10 ... 150 if not given"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="*",
        default=[AUTHORS_SEED],
        help="seeds of imbalanced subsets; 2024 (the authors' images) if not given",
    )
    parser.add_argument(
        "--folds",
        type=int,
        nargs="*",
        help="numbers of folds of the training classes; 4 if not given and if there are as many classes",
    )
    parser.add_argument(
        "--of",
        nargs="+",
        metavar="GRID",
        help="only the subsets that the tables of these grids ask for, such as default",
    )
    arguments = parser.parse_args()
    checked_name("dataset", arguments.dataset)
    train = Path("data/splits") / arguments.dataset / "train.csv"
    rows = read_manifest(train)
    if arguments.of:
        wanted = asked(arguments.of, arguments.dataset)
    else:
        pairs = [(gamma, seed) for gamma in arguments.gammas for seed in arguments.seeds]
        possible = [count for count in FOLDS if count <= len(by_label(rows))]
        counts = possible if arguments.folds is None else arguments.folds
        named = {"rate": arguments.rates, "gamma": pairs, "fold": counts}
        wanted = {name: dict.fromkeys(values) for name, values in named.items()}
    packed = Path("data/packed") / arguments.dataset
    originals = read_originals(packed)
    class_names = {entry.label: entry.class_name for entry in read_index(packed)}
    subsets = {f"partial_{rate}": partial(rows, rate, originals) for rate in wanted["rate"]}
    for count in wanted["fold"]:
        subsets |= folds(rows, count)
    for gamma, seed in wanted["gamma"]:
        subsets[f"imbalanced_{gamma}_{seed}"] = imbalanced(rows, gamma, seed, class_names, originals)
    with whole(Path("data/subsets") / arguments.dataset, foreign) as folder:
        write_manifests(folder, subsets, [train, packed / INDEX])
    print(f"{arguments.dataset}: {len(subsets)} subsets of {len(rows)} images")


if __name__ == "__main__":
    exit_with(main)
