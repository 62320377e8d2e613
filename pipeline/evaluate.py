"""Evaluate a run by hand: retrieval and clustering metrics of its kept weights on the test set. For the runs of tables
use `pipeline.run_grid`.

RUN is a folder that `pipeline.train` wrote. Instead of it, --untrained names a recipe: the pooled features of its
network before any training, of unit length, are evaluated. This shows how much training adds.

--out gets the metrics as JSON, as fractions: for the weights of the best test epoch and of the last epoch, or for the
only weights of a held-out run. The evaluation is put into the store under its key, unless it is already there. With
--keep-embeddings another file (.npz) holds the test images' embeddings at the last of these epochs: `embedded`, their
numbers in the packed index, int32 (images,), and `embeddings`, float16 (images, dimension).
"""

import argparse
from pathlib import Path

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError, exit_with, read_json, whole
from pipeline.engines.work import Job, do, evaluate_run, kept_weights
from pipeline.evaluation.evaluation import TestImages, all_embeddings, write_arrays
from pipeline.networks.network import prepare
from pipeline.networks.outline import check_backbone
from pipeline.runs import store
from pipeline.runs.grid import untrained_run
from pipeline.runs.key import evaluation_key
from pipeline.runs.record import METRICS, RECORD, TrainingRecord, read_record
from pipeline.runs.run import Run


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
    parser.add_argument("--out", type=Path, required=True, help="the JSON file for the metrics")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--workers", type=int, default=0, help="loader processes; the results do not depend on them")
    parser.add_argument("--keep-embeddings", type=Path, metavar="FILE", help="the .npz file for all test embeddings")
    words = parser.parse_args()

    if words.untrained and words.keep_embeddings:
        raise BadInputError("--keep-embeddings works only with a run: leave it out with --untrained")
    if words.out.exists() and store.key_of(words.out) is None:
        raise BadInputError(f"{words.out} exists, is not a metrics file and is not replaced: name another file")
    if words.keep_embeddings and words.keep_embeddings.exists():
        raise BadInputError(f"--keep-embeddings: {words.keep_embeddings} exists already: name another file")
    if words.untrained:
        dataset = words.dataset or words.untrained
        params = read_params(words.params, words.untrained)
        run = untrained_run(words.params, params, dataset, words.untrained)
        check_backbone(run.recipe, run.source)
        key = evaluation_key(run, words.device)
        do(Job(run, run.source, words.device, words.workers), key, evaluate_run)
        store.show_file(key.digest, METRICS, words.out)
    else:
        evaluate_kept(words)
    found = read_json(words.out)["metrics"]
    for rule, values in found.items():
        print(f"{rule}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items() if name != "epoch"))


def evaluate_kept(words: argparse.Namespace) -> None:
    """Evaluate the weights that a run kept. Raises `BadInputError` if they cannot be evaluated."""
    record = read_record(words.run / RECORD, TrainingRecord)
    if words.keep_embeddings and record.protocol == "choose_epoch":
        raise BadInputError(f"--keep-embeddings: {words.run} chose an epoch and kept no weights: name another run")
    store.take_in(words.run)
    if not store.is_done(record.key):
        raise BadInputError(f"{words.run}: its files do not agree with its {RECORD}: train it again")
    settings = (record.dataset, record.recipe, record.loss, record.loss_settings, record.seed, record.protocol)
    run = Run(*settings, source=str(words.run / RECORD))
    key = evaluation_key(run, words.device, record.key)
    do(Job(run, str(words.run), words.device, words.workers), key, evaluate_run)
    store.show_file(key.digest, METRICS, words.out)
    if words.keep_embeddings:
        device = prepare(run.recipe, words.device)
        images = TestImages(run.dataset, run.recipe, words.workers, device)
        *_, weights = kept_weights(store.folder(record.key), record)
        with whole(words.keep_embeddings) as temporary:
            write_arrays(temporary, all_embeddings(images.embeddings(weights), images.test))


if __name__ == "__main__":
    exit_with(main)
