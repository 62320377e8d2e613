"""The grids of tables at a glance: how many runs each has, done, stale and failed, and how long the rest would take.

Stale are those that were made with other settings or other code than now. The time is estimated from the runs of the
same dataset and network that are done: training images an epoch over their median images/s, and the median of what an
epoch took besides, for each of the recipe's epochs. It says unknown where none is done, or the list of a run's training
images is not made yet. Held-out runs are counted as runs, to their last epoch; evaluation comes on top.
"""

import argparse
import itertools
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.base.config import Params, Recipe, folder_name, read_params
from pipeline.base.files import BadInputError, exit_with, noted_failures, read_json
from pipeline.base.provenance import unchanged
from pipeline.runs.run import Run


@dataclass(frozen=True)
class GridRun:
    """A run of a table's grid: what settles it, as its run.json has to tell, and its metrics file; None for a run that
    only chooses an epoch."""

    row: str
    run: Run
    settled: dict[str, Any]
    metrics: Path | None

    @property
    def files(self) -> list[Path]:
        """What evaluation makes of the run: its metrics and its retrievals."""
        return [self.metrics, self.metrics.with_name(f"{self.metrics.stem}_retrievals.json")] if self.metrics else []

    def state(self, device: torch.device | None = None) -> str:
        """One of "not run", "stale", "not evaluated", "done".

        With a device, done is what would come out the same if it were run now and here: data and versions count, too.
        """
        if not (self.run.out / "run.json").is_file():
            return "not run"
        trained = read_json(self.run.out / "run.json")
        same = all(trained.get(key) == value for key, value in self.settled.items())
        if not same or not unchanged(trained["provenance"], device):
            return "stale"
        if self.metrics is None:
            return "done"
        if not all(file.is_file() for file in self.files):
            return "not evaluated"
        evaluated = read_json(self.metrics)
        same = evaluated["run"] == trained and unchanged(evaluated["provenance"], device)
        return "done" if same else "not evaluated"


def grid_runs(
    path: Path, table_name: str, dataset: str, runs: Path, metrics: Path, held_out_choice: bool = False
) -> list[GridRun]:
    """The runs of one table of the params file at `path` on one dataset, in the order in which they are to be run.

    Their folders are <runs>/<dataset>/<row>/<seed>, with `_held_out_choice` and `_held_out` for the held-out protocol.
    With `held_out_choice` they only choose their epochs on held-out training classes.
    """
    params = read_params(path)
    table, found = params.tables[table_name], []
    for values in itertools.product(*table.rows.values()):
        row: dict[str, Any] = dict(zip(table.rows, values, strict=True))
        recipe = f"{row.pop('recipe')}_{dataset}" if "recipe" in row else None
        loss = params.loss_entry(row.pop("loss", table.loss), dataset)
        rate, gamma = row.pop("rate", None), row.pop("gamma", None)
        changes = [f"{'recipe' if key in Recipe.model_fields else 'loss'}.{key}={row[key]}" for key in row]
        changed = read_params(path, recipe or dataset, loss, changes)
        for seed in table.seeds:
            place = Path(dataset) / folder_name(values)
            out = runs / place / str(seed)
            test = Run(path, dataset, recipe, loss, changes, seed, rate, gamma, False, None, out, None, None)
            protocols: list[tuple[Run, Path | None]] = [(test, metrics / place / f"{seed}.json")]
            if held_out_choice:
                protocols = [(replace(test, held_out=True), None)]
            elif table.held_out:
                choice = replace(test, held_out=True, out=out.with_name(f"{seed}_held_out_choice"))
                retrained = replace(test, until=choice.out / "history.jsonl", out=out.with_name(f"{seed}_held_out"))
                protocols += [(choice, None), (retrained, metrics / place / f"{seed}_held_out.json")]
            for run, file in protocols:
                settled = json.loads(json.dumps(run.settled(changed)))
                found.append(GridRun(folder_name(values), run, settled, file))
    return found


def speeds(folder: Path) -> dict[str, tuple[float, float]]:
    """Of the runs under `folder` that are done, by dataset and backbone: images/s of training, and seconds an epoch
    beside it; medians."""
    found: dict[str, list[tuple[float, float]]] = {}
    for path in folder.glob("**/run.json"):
        run = read_json(path)
        pairs = zip(run["images_per_second"], run["epoch_seconds"], strict=True)
        beside = [(speed, seconds - run["images"] / speed) for speed, seconds in pairs if speed > 0]
        found.setdefault(f"{run['dataset']} {run['recipe']['backbone']}", []).extend(beside)
    return {
        key: (statistics.median(speed for speed, _ in of), max(0.0, statistics.median(rest for _, rest in of)))
        for key, of in found.items()
        if of
    }


def listing(path: Path, params: Params) -> list[str]:
    """One line a table: runs, done, stale, failed, hours for the rest."""
    paper = path.parent.name
    measured, lines = speeds(Path("data/runs") / paper), []
    noted = {argument for note in noted_failures() for argument in note["arguments"]}
    for name, table in params.tables.items():
        places = (Path("data/runs") / paper / name, Path("metrics/runs") / paper / name)
        runs = [run for dataset in table.datasets for run in grid_runs(path, name, dataset, *places)]
        states = ["failed" if str(run.run.out) in noted else run.state() for run in runs]
        seconds, unknown = 0.0, 0
        for of, state in zip(runs, states, strict=True):
            if state == "done":
                continue
            recipe = of.settled["recipe"]
            speed = measured.get(f"{of.run.dataset} {recipe['backbone']}")
            if speed and of.run.manifest.is_file():
                images = of.run.manifest.read_text().count("\n") - 1
                seconds += recipe["epochs"] * (images / speed[0] + speed[1]) * (state != "not evaluated")
            else:
                unknown += 1
        rest = f"{seconds / 3600:.1f} h" + (f" and {unknown} runs of unknown time" if unknown else "")
        done, stale, failed = (states.count(state) for state in ("done", "stale", "failed"))
        rest = "" if done == len(runs) else "unknown" if unknown == len(runs) - done else rest
        lines.append(f"{paper:10} {name:12} {len(runs):5} {done:5} {stale:5} {failed:6}  {rest}".rstrip())
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted(Path("papers").glob("*/params.yaml"))
    parser.add_argument("params", type=Path, nargs="*", default=known, help="papers' params.yaml; all if not given")
    parser.add_argument("--tables", action="store_true", help="print the names <paper>/<table> alone")
    arguments = parser.parse_args()
    if not arguments.params:
        raise BadInputError("papers: there is no papers/*/params.yaml here, run this in the project's folder")
    if arguments.tables:
        print("\n".join(f"{path.parent.name}/{name}" for path in arguments.params for name in read_params(path).tables))
        return
    print(f"{'paper':10} {'table':12} {'runs':>5} {'done':>5} {'stale':>5} {'failed':>6}  time for the rest")
    for path in arguments.params:
        print("\n".join(listing(path, read_params(path))))


if __name__ == "__main__":
    exit_with(main)
