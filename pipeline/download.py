"""Stage: put a dataset's verified original files into data/raw/<dataset>, or a network's weights into data/weights.

PIPELINE_MIRRORS names your own mirrors, and PIPELINE_TIMEOUT says how long a server may be silent: docs/datasets.md.
"""

import argparse
import os
from pathlib import Path

from pipeline.base.command import exit_with
from pipeline.base.files import BadInputError
from pipeline.data import fetch
from pipeline.datasets import dataset_module
from pipeline.networks.published import FILES
from pipeline.networks.source import published_file
from pipeline.networks.weights import FOLDER


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.download", description=__doc__)
    known = ", ".join(FILES)
    parser.add_argument(
        "name",
        help=f"a file of pipeline/datasets, such as cub, or a network's weights: {known}, or a network of timm with "
        "its weights, such as timm/resnet18.a1_in1k",
    )
    name = parser.parse_args().name
    raw = Path("data/raw") / name
    if name in FILES or "/" in name:
        if name in FILES and os.path.lexists(raw):
            raise BadInputError(
                f"{name} is the name of a network's weights and of the dataset {raw}: rename the dataset"
            )
        fetch.fetch(published_file(name), FOLDER)
    else:
        dataset_module(name).download(raw)


if __name__ == "__main__":
    exit_with(main)
