"""Each dataset from a look-alike of its archive to its manifests, by the true stages."""

import csv
from pathlib import Path

from tests import lookalikes
from tests.lookalikes import CUB_COUNTS, project, stage
from tests.server import Served, serve


def run_stages(folder: Path, dataset: str, source: Path) -> dict[str, list[dict[str, str]]]:
    """Download from a local server that serves `source`, convert and split; return the manifests' rows."""
    files = {f"/raw/{dataset}/{path.name}": Served(path.read_bytes()) for path in source.iterdir()}
    with serve(files) as base:
        for name in ("download", "convert", "split"):
            done = stage(folder, f"pipeline.{name}", dataset, PIPELINE_MIRRORS=base)
            assert done.returncode == 0, done.stderr
    manifests = {}
    for path in (folder / "data/splits" / dataset).iterdir():
        with path.open(newline="") as file:
            manifests[path.stem] = list(csv.DictReader(file))
    return manifests


def test_cub_goes_from_archive_to_class_folders(tmp_path):
    lookalikes.cub(tmp_path / "source")
    folder = project(tmp_path / "project", {"cub": CUB_COUNTS})
    manifests = run_stages(folder, "cub", tmp_path / "source")
    # images.txt goes by class, and within a class not by name.
    assert [row["name"].removeprefix("001.Black_footed_Albatross/") for row in manifests["train"][:3]] == [
        f"Black_footed_Albatross_{rest}.jpg" for rest in ("0046_53", "0009_16", "0002_9")
    ]
    assert [row["label"] for row in manifests["test"]] == ["2", "2", "2", "3", "3", "3"]
    assert [row["label"] for row in manifests["held_out_test"]] == ["1", "1", "1"]
    done = stage(folder, "pipeline.export", "cub")
    assert done.returncode == 0, done.stderr
    originals = {name.split("/images/")[-1]: content for name, content in lookalikes.cub_files().items()}
    for part, label in (("train", "001.Black_footed_Albatross"), ("test", "004.Groove_billed_Ani")):
        exported = list((folder / "data/export/cub" / part / label).iterdir())
        assert len(exported) == 3
        assert all(path.read_bytes() == originals[f"{label}/{path.name}"] for path in exported)
