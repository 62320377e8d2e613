"""Evaluate a run by hand: retrieval and clustering metrics of its kept weights on the test set. For the runs of tables
use `pipeline.run_grid`.

RUN is a folder that `pipeline.train` wrote. Instead of it, --untrained names a recipe: the pooled features of its
network before any training, of unit length, are evaluated. This shows how much training adds.

--out gets the metrics as JSON, as fractions: for the weights of the best test epoch and of the last epoch, or for the
only weights of a held-out run. --metrics chooses other metrics, as a recipe does. The evaluation is put into the store
under its key, unless it is already there. With --keep-embeddings another file (.npz) holds the test images' embeddings
at the last of these epochs: `embedded`, their numbers in the packed index, int32 (images,), and `embeddings`, float16
(images, dimension).
"""

import argparse
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from pipeline.base.arrays import write_arrays
from pipeline.base.checks import problems_of, with_values
from pipeline.base.command import exit_with
from pipeline.base.config import Recipe, problem_lines, read_params
from pipeline.base.files import BadInputError, check_apart, check_output, read_json, whole
from pipeline.base.machine import workers
from pipeline.base.yaml_files import parse_yaml
from pipeline.networks.network import prepare
from pipeline.networks.outline import check_backbone
from pipeline.runs import shown, store
from pipeline.runs.grid import untrained_run
from pipeline.runs.key import evaluation_key
from pipeline.runs.record import METRICS, RECORD, TrainingRecord, check_files, read_record
from pipeline.runs.run import Run
from pipeline.work.evaluation import TestImages, all_embeddings
from pipeline.work.job import Job, do, evaluate_run, kept_weights


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("run", type=Path, nargs="?", help="folder of a run")
    what.add_argument("--untrained", metavar="RECIPE", help="an entry of recipes, evaluated without training")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the params file that has the recipe")
    parser.add_argument("--dataset", help="dataset for --untrained; the recipe's name if not given")
    parser.add_argument(
        "--metrics",
        help="such as '[recall, map_at_r]'; [recall, map_at_r, nmi] or with --untrained the recipe's if not given",
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON file for the metrics")
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        help="instead of the kind that the run was trained on; with --untrained, of the params file's machine.device",
    )
    parser.add_argument(
        "--workers", type=workers, default=0, help="loader processes; the results do not depend on them"
    )
    parser.add_argument("--keep-embeddings", type=Path, metavar="FILE", help="the .npz file for all test embeddings")
    words = parser.parse_args()

    if words.untrained and words.keep_embeddings:
        raise BadInputError("--keep-embeddings works only with a run: leave it out with --untrained")
    check_output("--out", words.out, shown.foreign, is_file=True)
    if words.keep_embeddings:
        check_output("--keep-embeddings", words.keep_embeddings, is_file=True)
    check_apart(keep_embeddings=words.keep_embeddings, out=words.out)
    if words.untrained:
        dataset = words.dataset or words.untrained
        params = read_params(words.params, words.untrained)
        run = untrained_run(words.params, params, dataset, words.untrained)
        check_backbone(run.recipe, run.source)
        run = replace(run, recipe=with_metrics(run.recipe, words.metrics))
        device = words.device or params.machine.device
        key = evaluation_key(run, device)
        do(Job(run, run.source, device, words.workers), key, evaluate_run)
        shown.show_file(key.digest, METRICS, words.out)
    else:
        evaluate_kept(words)
    found = read_json(words.out)["metrics"]
    for rule, values in found.items():
        print(f"{rule}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items() if name != "epoch"))


def with_metrics(recipe: Recipe, metrics: str | None) -> Recipe:
    """A recipe with other metrics, as a command line names them; the recipe itself if it names none. Raises
    `BadInputError` if there are no such metrics."""
    if metrics is None:
        return recipe
    try:
        changed = with_values(recipe, {"metrics": parse_yaml(metrics, "--metrics")})
    except ValidationError as error:
        found = problem_lines(error, "", Recipe)
    else:
        found = problems_of(changed)
    if found:
        raise BadInputError("\n  ".join(["--metrics:", *found]))
    return changed


def evaluate_kept(words: argparse.Namespace) -> None:
    """Evaluate the weights that a run kept. Raises `BadInputError` if they cannot be evaluated."""
    record = read_record(words.run / RECORD, TrainingRecord)
    if words.keep_embeddings and record.protocol == "choose_epoch":
        raise BadInputError(f"--keep-embeddings: {words.run} chose an epoch and kept no weights: name another run")
    check_files(words.run, record.files)
    store.take_in(words.run)
    record = store.entry(record.key, TrainingRecord)
    recipe = with_metrics(record.recipe, words.metrics)
    dataset, loss, loss_settings, seed = (
        record.settings[name] for name in ("dataset", "loss", "loss_settings", "seed")
    )
    run = Run(dataset, recipe, loss, loss_settings, seed, record.protocol, source=str(words.run / RECORD))
    chosen = words.device or record.content["device"]
    key = evaluation_key(run, chosen, record.key)
    do(Job(run, str(words.run), chosen, words.workers), key, evaluate_run)
    shown.show_file(key.digest, METRICS, words.out)
    if words.keep_embeddings:
        device = prepare(run.recipe, chosen)
        images = TestImages(run.dataset, run.recipe, words.workers, device)
        *_, weights = kept_weights(record)
        with whole(words.keep_embeddings) as temporary:
            write_arrays(temporary, all_embeddings(images.embeddings(weights), images.test))


if __name__ == "__main__":
    exit_with(main)
