"""Stage: a params.yaml taken apart: each recipe and each loss's settings as a JSON file of its own.

A run depends on two of these files, so that a change of one recipe makes its runs stale and no others. DVC's own way,
keys of params.yaml as parameters of every stage, reads the whole file once a stage, which for hundreds of runs takes a
third of all the time that DVC takes.
"""

import argparse
from pathlib import Path

from pipeline.config import read_params
from pipeline.files import exit_with, whole, write_json


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.settings", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("params", type=Path, help="such as papers/proxygml/params.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder for recipes/NAME.json and losses/NAME.json")
    arguments = parser.parse_args()
    params = read_params(arguments.params)
    with whole(arguments.out) as folder:
        for name, recipe in params.recipes.items():
            write_json(folder / "recipes" / f"{name}.json", recipe.model_dump())
        for name, settings in params.losses.items():
            write_json(folder / "losses" / f"{name}.json", settings)


if __name__ == "__main__":
    exit_with(main)
