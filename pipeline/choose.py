"""Choose the grids that are DVC stages here. This writes papers/chosen.yaml, which papers/dvc.yaml and data/dvc.yaml
read.

In a fresh clone none is chosen, because DVC's own commands (`dvc status`, `dvc pull`, `dvc exp apply`) complain about
every stage that has never been run. What a grid needs (datasets, pretrained weights, subsets of training images)
follows from its params.yaml. Without a grid this prints the chosen ones. `all` chooses every grid, and `none` chooses
none.
"""

import argparse
from typing import Any

import yaml

from pipeline.base.command import exit_with
from pipeline.base.config import read_yaml
from pipeline.base.files import BadInputError, write_text
from pipeline.datasets import module_name
from pipeline.networks.published import file_name
from pipeline.runs.grid import CHOSEN, DEFAULT, GridRun, chosen_grids, grid_runs, known_grids

HEAD = """\
# The grids that are DVC stages here, and what they need. Written by `python -m pipeline.choose GRID...`: commit it.
# weights: the pretrained weights that a stage's recipes read. lists: the folder of its training lists. If a stage needs
# no weights, or no lists other than its splits, its splits are given instead.
"""
DRAWN = "glyphs"
"""The dataset of the embedded default. Its stages are in the top-level dvc.yaml."""


def stage(grid: str, dataset: str, runs: list[GridRun]) -> dict[str, str]:
    """The entries that papers/dvc.yaml needs for the stage of a grid's runs on one dataset."""
    recipes = [run.run.recipe for run in runs if run.run.recipe.pretrained]
    files = {recipe.weights.file if recipe.weights else file_name(recipe.backbone) for recipe in recipes}
    splits = f"data/splits/{dataset}"
    weights = f"data/weights/{min(map(str, files))}" if len(files) == 1 else "data/weights" if files else splits
    lists = f"data/subsets/{dataset}" if any(run.run.subset for run in runs) else splits
    return {"grid": grid, "dataset": dataset, "weights": weights, "lists": lists}


def chosen(grids: list[str]) -> dict[str, Any]:
    """The content of papers/chosen.yaml for some grids."""
    content: dict[str, Any] = {"runs": {}, "tables": grids, "datasets": {}, "subsets": [], "networks": {}}
    needed: dict[str, set[str]] = {"datasets": set(), "subsets": set()}
    networks: set[str] = set()
    for grid in grids:
        by_dataset: dict[str, list[GridRun]] = {}
        for run in grid_runs(grid):
            by_dataset.setdefault(run.run.dataset, []).append(run)
        for dataset, runs in by_dataset.items():
            content["runs"][f"{grid}-{dataset}"] = stage(grid, dataset, runs)
            needed["datasets"] |= {dataset} - {DRAWN}
            needed["subsets"] |= {dataset for run in runs if run.run.subset} - {DRAWN}
            recipes = [run.run.recipe for run in runs]
            networks |= {recipe.backbone for recipe in recipes if recipe.pretrained and not recipe.weights}
    for network in sorted(networks):
        content["networks"][network.replace("/", ".")] = {"name": network, "file": file_name(network)}
    for dataset in sorted(needed["datasets"]):
        content["datasets"][dataset] = {"name": dataset, "module": module_name(dataset)}
    return content | {"subsets": sorted(needed["subsets"])}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.choose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [grid for grid in known_grids() if grid != DEFAULT]
    parser.add_argument("grids", nargs="*", metavar="GRID", help=f"all, none, or some of {', '.join(known)}")
    asked = parser.parse_args().grids
    if DEFAULT in asked:
        raise BadInputError(f"{DEFAULT} is a stage without being chosen: leave it out")
    if asked:
        grids = known if asked == ["all"] else [] if asked == ["none"] else list(dict.fromkeys(asked))
        body = yaml.safe_dump(chosen(grids), sort_keys=False, width=120)
        write_text(CHOSEN, HEAD + body)
    content = read_yaml(CHOSEN)
    chosen_grids()  # refuses a damaged file
    print(f"DVC stages here: {', '.join(content.get('runs') or ()) or 'only the embedded default'}")


if __name__ == "__main__":
    exit_with(main)
