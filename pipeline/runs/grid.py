"""Grids: the runs of the tables of a params file, and the names under which people see them.

A grid is a folder of papers/ with a params.yaml, and has the folder's name. The grid `default` is the project's own
params.yaml.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.base.checks import choice_problems, with_values
from pipeline.base.choices import value_problems
from pipeline.base.config import Params, Recipe, Table, folder_name, problem_lines, read_params
from pipeline.base.files import BadInputError, elsewhere
from pipeline.base.names import checked_name
from pipeline.base.recipe import is_recipe_key, replaced
from pipeline.base.yaml_files import read_yaml
from pipeline.runs.protocols import PROTOCOLS
from pipeline.runs.run import Run, make_run
from pipeline.runs.tried import best_try, result

DEFAULT = "default"
RAW_PIXELS, UNTRAINED, ENSEMBLE = "raw_pixels", "untrained", "ensemble_of_"
"""The names of the rows that tables add. The last one is followed by the name of the row whose runs are combined."""

TRY = ".try_"
"""What follows the name of a table's row, and is followed by a number, in the name of a row of a search."""

CACHED = Path("data/cached")
"""What DVC's cache gets of the runs. DVC removes these folders before it makes them anew, so people find the same files
under names of their own, below data/runs and data/queries."""

CHOSEN = Path("papers/chosen.yaml")
"""The file with the grids that are DVC stages here. `pipeline.choose` writes it."""


def grid_folder(grid: str) -> Path:
    """The folder of a grid's params.yaml. Raises `BadInputError` for an unknown grid."""
    checked_name("grid", grid)
    folder = Path() if grid == DEFAULT else Path("papers") / grid
    if not (folder / "params.yaml").is_file():
        fix = elsewhere() or f": choose a grid among {', '.join(known_grids())}"
        raise BadInputError(f"{folder / 'params.yaml'} is missing{fix}")
    return folder


def known_grids() -> list[str]:
    """The names of all grids, the default first."""
    return [DEFAULT, *sorted(path.parent.name for path in Path("papers").glob("*/params.yaml"))]


def chosen_grids() -> list[str]:
    """The grids that `dvc repro -P` makes: the default, and those of papers/chosen.yaml. Raises `BadInputError` if that
    file is damaged."""
    content = read_yaml(CHOSEN) if CHOSEN.exists() else {"tables": []}
    tables = content.get("tables") if isinstance(content, dict) else None
    if not isinstance(tables, list) or not all(isinstance(name, str) for name in tables):
        raise BadInputError(f"{CHOSEN} does not list grids: write it anew with `python -m pipeline.choose`")
    return [DEFAULT, *tables]


@dataclass(frozen=True)
class GridRun:
    """A run of a table's grid."""

    grid: str
    table: str
    row: str
    """The row's name: its values, joined by `folder_name`."""
    run: Run
    values: tuple[str, ...] = ()
    """The row's values as text, one for each axis of the table. Empty if the row is not a row of the grid."""
    tried: int | None = None
    """The number of the try, counted from 1, whose settings the run has, if the table has a search."""
    point: dict[str, Any] = field(default_factory=dict)
    """What this try changes: keys of the recipe or of the loss -> values."""
    judged: bool = False
    """Whether the search judges the try by this run. The other runs of a try follow if it is the first or is chosen."""

    @property
    def searched(self) -> str:
        """The name of the table's row, without that of a try."""
        return self.row.partition(TRY)[0]

    @property
    def place(self) -> Path:
        """The run's name below data/runs and similar folders: <grid>/<dataset>/<table>/<row>/<seed>."""
        fold = f"_fold_{self.run.fold}" if self.run.fold else ""
        seed = f"{self.run.seed}{fold}{PROTOCOLS[self.run.protocol].ending}"
        return Path(self.grid, self.run.dataset, self.table, self.row, seed)

    @property
    def weights(self) -> Path:
        """The folder that shows the run's weights, history and record."""
        return Path("data/runs") / self.place

    @property
    def queries(self) -> Path:
        """The folder that shows the files that the evaluation kept beside the metrics."""
        return Path("data/queries") / self.place

    @property
    def cached_weights(self) -> Path:
        """As `weights`, below a folder for DVC's cache."""
        return CACHED / "runs" / self.place

    @property
    def cached_queries(self) -> Path:
        """As `queries`, below a folder for DVC's cache. Tables and reports read this one, because their stages name
        it."""
        return CACHED / "queries" / self.place

    @property
    def metrics(self) -> Path:
        """The run's metrics file."""
        return Path("metrics/runs") / self.place.with_name(f"{self.place.name}.json")

    @property
    def error(self) -> Path:
        """The file that says why the run failed, if it did."""
        return self.metrics.with_name(f"{self.place.name}.error.json")

    @property
    def made(self) -> Path:
        """The file that says when and on which machine the run was made."""
        return Path("metrics/made") / self.place.with_name(f"{self.place.name}.json")


def rows_of(table: Table) -> Iterator[tuple[Any, ...]]:
    """The values of each row of a table, in order."""
    return itertools.product(*table.rows.values())


def _changed(source: str, run: Run, recipe: dict[str, Any], loss: dict[str, Any]) -> Run:
    """A run with some keys of its recipe and of its loss changed. Raises `BadInputError` with `source` if the changed
    recipe is impossible."""
    try:
        changed = with_values(run.recipe, recipe)
    except ValidationError as error:
        lines = problem_lines(error, "", Recipe)
        raise BadInputError(f"{source}: {'; '.join(lines)}") from None
    settings = run.loss_settings
    for key, value in loss.items():
        settings = replaced(settings, key, value)
    return replace(run, recipe=changed, loss_settings=settings)


def row_run(path: Path, params: Params, name: str, dataset: str, values: tuple[Any, ...], seed: int) -> Run:
    """The run of a row of the table `name` of the params file at `path`, by the papers' protocol."""
    table = params.tables[name]
    row = dict(zip(table.rows, values, strict=True))
    recipe = f"{row.pop('recipe')}_{dataset}" if "recipe" in row else None
    loss = params.loss_entry(row.pop("loss", table.loss), dataset)
    subset = {key: row.pop(key) for key in ("rate", "gamma") if key in row}
    changes = (
        {key: value for key, value in row.items() if is_recipe_key(key)},
        {key: value for key, value in row.items() if not is_recipe_key(key)},
    )
    run = make_run(path, params, dataset, loss, seed, recipe, **subset)
    return _changed(f"{path}: tables.{name}.rows", run, *changes)


def grid_runs(
    grid: str, dataset: str | None = None, table: str | None = None, every_choice: bool = False
) -> list[GridRun]:
    """The runs of a grid, or of one dataset or one table of it, in the order of the params file. Of a search these are
    its tries, and the final runs of the first try and, as soon as it is known, of the one that is chosen; with
    `every_choice` those of each try, whatever is chosen. Raises `BadInputError` for an unknown grid, dataset or
    table."""
    path = grid_folder(grid) / "params.yaml"
    params = read_params(path)
    if table is not None and table not in params.tables:
        raise BadInputError(f"{path}: tables.{table}: there is no such table, choose one of {', '.join(params.tables)}")
    datasets = list(dict.fromkeys(known for of in params.tables.values() for known in of.datasets))
    if dataset is not None and dataset not in datasets:
        raise BadInputError(f"{path}: no table has the dataset {dataset}, choose one of {', '.join(datasets)}")
    found: list[GridRun] = []
    for name, of in params.tables.items():
        for known in of.datasets:
            if dataset in (None, known) and table in (None, name):
                found += _table_runs(grid, path, params, name, known, every_choice)
    return found


def check(grid: str, runs: list[GridRun]) -> None:
    """Check runs of a grid, including their networks and losses, before the first one is started. It imports torch.
    Raises `BadInputError` with all problems."""
    from pipeline.networks.outline import backbone_problems  # here, because it imports torch, which takes a second

    problems: dict[str, None] = {}
    for recipe, source in {run.run.source: (run.run.recipe, run.run.source) for run in runs}.values():
        problems |= dict.fromkeys(f"{source.split(': ')[-1]}.{problem}" for problem in backbone_problems(recipe))
    # A row may change a recipe, so its values are checked once for each recipe that comes of it.
    for run in {(run.run.source, str(run.run.recipe.choices())): run for run in runs}.values():
        place = run.run.source.split(": ")[-1]
        problems |= dict.fromkeys(f"{place}.{problem}" for problem in choice_problems(run.run.recipe))
    for run in runs:
        if run.run.trained:
            name = f"{run.run.loss_source.split(': ')[-1]}"
            problems |= dict.fromkeys(value_problems("loss", run.run.loss, run.run.loss_settings, name))
    if problems:
        raise BadInputError("\n  ".join([f"{grid_folder(grid) / 'params.yaml'}:", *problems]))


def untrained_run(path: Path, params: Params, dataset: str, recipe: str) -> Run:
    """The evaluation, on a dataset, of the untrained network of a recipe of the params file at `path`. Raises
    `BadInputError` for an unknown recipe."""
    checked_name("dataset", dataset)
    if recipe not in params.recipes:
        raise BadInputError(f"{path}: recipes.{recipe}: there is no such recipe, add it")
    source = f"{path}: recipes.{recipe}"
    return Run(dataset, params.recipes[recipe], "none", {}, 0, "untrained", source=source)


def _members(path: Path, params: Params, name: str, dataset: str, values: tuple[Any, ...]) -> tuple[Run, ...]:
    """The runs of all seeds of a row, by the protocol `test` if the table has it, otherwise by `held_out`. Empty if
    there is only one seed, or if the table only chooses epochs."""
    table = params.tables[name]
    tests = [row_run(path, params, name, dataset, values, seed) for seed in table.seeds]
    if len(tests) < 2 or table.protocols == ["choose_epoch"]:
        return ()
    if "test" in table.protocols:
        return tuple(tests)
    choices = [replace(test, protocol="choose_epoch") for test in tests]
    return tuple(
        replace(test, protocol="held_out", chosen_by=choice) for test, choice in zip(tests, choices, strict=True)
    )


def _search_runs(
    grid: str, path: Path, params: Params, name: str, dataset: str, values: tuple[Any, ...], every_choice: bool
) -> Iterator[GridRun]:
    """The runs of the search of one row."""
    table, row = params.tables[name], folder_name(values)
    search = table.search
    assert search is not None
    entry = params.loss_entry(str(dict(zip(table.rows, values, strict=True)).get("loss", table.loss)), dataset)

    def made(number: int, judged: bool, seed: int, **changes: Any) -> GridRun:
        point = search.point(row, entry, number)
        run = _changed(f"{path}: tables.{name}.search", row_run(path, params, name, dataset, values, seed), *point)
        if changes["protocol"] == "held_out":
            changes["chosen_by"] = replace(run, protocol="choose_epoch")
        place = grid, name, f"{row}{TRY}{number}"
        return GridRun(*place, replace(run, **changes), texts, number, point[0] | point[1], judged)

    texts, first = tuple(map(str, values)), table.seeds[0]
    folds = [f"{k + 1}of{search.folds}" for k in range(search.folds)] if search.folds > 1 else [None]
    numbers = range(1, search.tries + 1)
    tries = {n: [made(n, True, first, protocol="choose_epoch", fold=fold) for fold in folds] for n in numbers}
    yield from itertools.chain.from_iterable(tries.values())
    results = {n: [result(run.run, run.metrics, run.error) for run in tries[n]] for n in numbers}
    for number in numbers if every_choice else sorted({1, best_try(results) or 1}):
        for seed in table.seeds:
            if search.folds > 1 or seed != first:  # otherwise the try itself chooses the epoch
                yield made(number, False, seed, protocol="choose_epoch")
            yield made(number, False, seed, protocol="held_out")


def _table_runs(
    grid: str, path: Path, params: Params, name: str, dataset: str, every_choice: bool
) -> Iterator[GridRun]:
    """The runs of one table on one dataset."""
    table = params.tables[name]
    if table.raw_pixels:
        recipe, source = params.recipes[dataset], f"{path}: recipes.{dataset}"
        run = Run(dataset, recipe, "none", {}, 0, "raw_pixels", source=source)
        yield GridRun(grid, name, RAW_PIXELS, run, (RAW_PIXELS, *[""] * (len(table.rows) - 1)))
    if table.untrained:
        for stem in map(str, table.rows.get("recipe", [""])):
            row, entry = (f"{UNTRAINED}-{stem}", f"{stem}_{dataset}") if stem else (UNTRAINED, dataset)
            values = (row, *[""] * (len(table.rows) - 1))
            yield GridRun(grid, name, row, untrained_run(path, params, dataset, entry), values)
    for values in rows_of(table):
        if table.search:
            yield from _search_runs(grid, path, params, name, dataset, values, every_choice)
            continue
        if table.ensembles and (members := _members(path, params, name, dataset, values)):
            run = replace(members[0], protocol="ensemble", members=members, chosen_by=None)
            texts = (f"{ENSEMBLE}{values[0]}", *map(str, values[1:]))
            yield GridRun(grid, name, f"{ENSEMBLE}{folder_name(values)}", run, texts)
        for seed in table.seeds:
            test = row_run(path, params, name, dataset, values, seed)
            choice = replace(test, protocol="choose_epoch")
            runs = {"test": test, "choose_epoch": choice}
            runs["held_out"] = replace(test, protocol="held_out", chosen_by=choice)
            wanted = ["choose_epoch"] if "held_out" in table.protocols else []
            for protocol in dict.fromkeys([*wanted, *table.protocols]):
                yield GridRun(grid, name, folder_name(values), runs[protocol], tuple(map(str, values)))
