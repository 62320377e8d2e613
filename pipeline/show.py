"""Stage: make data/cached show the runs of a grid on one dataset, for DVC's cache and `dvc push`, and data/runs and
data/queries for people: links to the files of the store.

`pipeline.run_grid` does this as well. It is a stage of its own because DVC removes a stage's outputs before it starts
the stage. If data/cached were an output of the stage that makes the runs, a mistake in the settings would remove it.
data/runs and data/queries are no outputs, so that DVC removes nothing that people put there.

metrics/made says who made the committed runs. With --made-here it says how this clone made them instead.
"""

import argparse

from pipeline.base.command import exit_with
from pipeline.base.config import read_params
from pipeline.runs import made
from pipeline.runs.grid import grid_folder, grid_runs
from pipeline.runs.names import make_folders, show_files, take_in
from pipeline.runs.states import keys_of


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.show", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", help="default, or a folder of papers/, such as proxygml")
    parser.add_argument("dataset", help="one of the grid's datasets")
    parser.add_argument(
        "--made-here", action="store_true", help="let metrics/made say how this clone made the runs, where it did"
    )
    words = parser.parse_args()
    runs = grid_runs(words.grid, words.dataset)
    machine = read_params(grid_folder(words.grid) / "params.yaml").machine
    take_in(runs, {words.grid: machine})
    make_folders(runs)
    for run in runs:
        show_files(run, keys_of(run, machine.device))
    if words.made_here:
        print(f"metrics/made: {sum(map(made.adopt, runs))} of {len(runs)} runs were made here")


if __name__ == "__main__":
    exit_with(main)
