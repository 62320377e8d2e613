"""Stage: put a dataset's original files into data/raw/<dataset>, verified."""

import argparse
from pathlib import Path

from pipeline import datasets
from pipeline.files import exit_with


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.download", description=__doc__)
    parser.add_argument("dataset", help="a file of pipeline/datasets, such as glyphs")
    name = parser.parse_args().dataset
    datasets.load(name).download(Path("data/raw") / name)


if __name__ == "__main__":
    exit_with(main)
