"""The weights in the folder of a run."""

from pathlib import Path

from pipeline.base.files import BadInputError
from pipeline.runs.record import RECORD, TrainingRecord, check_files, read_record


def weights_of(folder: Path, name: str | None) -> tuple[TrainingRecord, Path]:
    """The record of a run, and its weights: those with this name, or else those that were chosen without a look at the
    test set. Raises `BadInputError` if they are missing or not what the record says."""
    record = read_record(folder / RECORD, TrainingRecord)
    kept = [Path(file).stem for file in record.files if file.endswith(".pt")]
    if not kept:
        raise BadInputError(f"{folder}: the run chose an epoch and kept no weights: name another run")
    chosen = name or ("held_out" if "held_out" in kept else "last_epoch")
    if chosen not in kept:
        raise BadInputError(f"--weights: {folder} has no {chosen}: choose among {', '.join(kept)}")
    check_files(folder, {f"{chosen}.pt": record.files[f"{chosen}.pt"]})
    return record, folder / f"{chosen}.pt"
