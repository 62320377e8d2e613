"""Train one run by hand: one network with one loss and one seed. For the runs of tables use `pipeline.run_grid`.

The run is put into the store under its key, unless it is already there. --out shows it: a folder with the weights of
the best test epoch and of the last epoch (`best_test_epoch.pt`, `last_epoch.pt`), `history.csv` (a line for each epoch)
and `run.json` (what was run).

The held-out protocol consists of two runs. With --choose-epoch the run trains on one half of the training classes and
is evaluated on the other half instead of the test set; only its history and run.json are kept. With --held-out and the
same settings, a run on all training classes ends after the epoch that was best in the first run, and keeps
`held_out.pt`. It is never evaluated on the test set.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from pipeline.base.command import exit_with
from pipeline.base.config import read_params
from pipeline.base.files import check_output
from pipeline.base.machine import workers
from pipeline.runs import shown
from pipeline.runs.key import training_key
from pipeline.runs.run import checked_run, read_history


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the file with recipes and losses")
    parser.add_argument("--dataset", required=True, help="a dataset whose data are under data/")
    parser.add_argument("--recipe", help="an entry of recipes; the one with the dataset's name if not given")
    parser.add_argument("--loss", required=True, help="an entry of losses")
    parser.add_argument("--seed", type=int, required=True, help="decides everything random in the run")
    parser.add_argument("--out", type=Path, required=True, help="folder that shows the weights and the history")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="recipe.KEY=VALUE",
        help="or loss.KEY=VALUE: change settings for this run only",
    )
    # A subset has images of the classes that would be held out, so it goes with neither of the last two.
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--partial", type=float, metavar="RATE", help="train on this share of each class's images")
    one.add_argument("--imbalanced", type=int, metavar="GAMMA", help="train on classes with long-tailed sizes")
    one.add_argument("--choose-epoch", action="store_true", help="choose the epoch on held-out training classes")
    one.add_argument(
        "--held-out", action="store_true", help="end after the epoch that the same run with --choose-epoch chose"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], help="instead of the params file's machine.device")
    parser.add_argument(
        "--workers", type=workers, default=0, help="loader processes; the results do not depend on them"
    )
    words = parser.parse_args()

    check_output("--out", words.out, shown.foreign)
    run = checked_run(
        words.params,
        words.dataset,
        words.loss,
        words.seed,
        words.recipe,
        words.set,
        rate=words.partial,
        gamma=words.imbalanced,
    )
    if words.choose_epoch or words.held_out:
        run = replace(run, protocol="choose_epoch")
    if words.held_out:
        run = replace(run, protocol="held_out", chosen_by=run)
    params = read_params(words.params, words.recipe or words.dataset, words.loss, words.set)
    device = words.device or params.machine.device
    key = training_key(run, device)
    most = "at most " if words.held_out else ""
    print(
        f"{words.out}: trains {run.recipe.backbone} with {words.loss} on {run.manifest} for "
        f"{most}{run.recipe.epochs} epochs (seed {run.seed}, {device})",
        file=sys.stderr,
        flush=True,
    )
    # Here, because they import torch: help and errors come a second sooner.
    from pipeline.training.checkpoint import TERMINATED, StoppedError
    from pipeline.training.graphs import GraphsFailedError
    from pipeline.work.job import Job, do, train_run

    try:
        do(Job(run, str(words.out), device, words.workers), key, train_run)
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        sys.exit(TERMINATED)
    except GraphsFailedError as error:
        print(f"CUDA graphs failed {error}: the run goes on without them in a new process", file=sys.stderr)
        os.execv(sys.executable, [sys.executable, "-m", "pipeline.train", *sys.argv[1:]])
    shown.show(key.digest, words.out)
    last = read_history(words.out / "history.csv")[-1]
    searched = "held-out" if words.choose_epoch else "test"
    recall = f", {searched} Recall@1 {last['recall@1']:.2%}" if "recall@1" in last else ""
    every = words.out / "history.csv"
    print(f"{words.out}: after epoch {last['epoch']} loss {last['loss']:.4f}{recall} (all epochs: {every})")


if __name__ == "__main__":
    exit_with(main)
