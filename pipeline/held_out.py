"""Stage: the best held-out Recall@1 of each loss, for `dvc exp show`: what a search may choose by.

Reads the histories of runs that were trained with --held-out, <runs>/<loss>/<seed>/history.jsonl. Writes a JSON file:
by loss the mean over seeds of each run's highest Recall@1 on the held-out training classes, and the epochs it came at.
"""

import argparse
import statistics
from pathlib import Path

from pipeline.base.files import BadInputError, exit_with, read_json, write_json
from pipeline.runs.run import best_epoch, read_history


def main() -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.held_out", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of runs: <loss>/<seed>")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    arguments = parser.parse_args()

    found: dict[str, dict[str, float | list[int]]] = {}
    for folder in sorted(path for path in arguments.runs.iterdir() if path.is_dir()):
        runs = sorted(file.parent for file in folder.glob("*/run.json"))
        for run in runs:
            if (protocol := read_json(run / "run.json")["protocol"]) != "held_out_choice":
                raise BadInputError(f"{run} is a run of the protocol {protocol}: train it with --held-out")
        histories = [read_history(run / "history.jsonl") for run in runs]
        epochs = [best_epoch(history) for history in histories]
        recalls = [history[epoch - 1]["recall"]["recall@1"] for history, epoch in zip(histories, epochs, strict=True)]
        if runs:
            found[folder.name] = {"recall@1": round(statistics.fmean(recalls), 6), "epochs": epochs}
    if not found:
        raise BadInputError(f"{arguments.runs} holds no run: train some with --held-out")
    write_json(arguments.out, found)


if __name__ == "__main__":
    exit_with(main)
