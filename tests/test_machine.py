"""What a machine's owner chooses: read from a params file or the environment, checked, and in no lock of DVC's."""

import shutil

import pytest
import yaml

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from tests.conftest import ENVIRONMENT, ROOT


@pytest.fixture
def params(tmp_path):
    def write(**machine):
        content = yaml.safe_load((ROOT / "params.yaml").read_text())
        content["machine"] |= machine
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


GOOD = [
    ("gpus", "[0, 2]", ["0", "2"]),
    ("gpus", "[GPU-8a, MIG-1]", ["GPU-8a", "MIG-1"]),
    ("gpus", "4", 4),
    ("gpus", "all", "all"),
    ("runs_per_gpu", "3", 3),
    ("workers_at_most", "null", None),
    ("sbatch", "--time=1:00:00 --gres=gpu:1", "--time=1:00:00 --gres=gpu:1"),
    ("engine", "slurm", "slurm"),
    ("engine", "ray", "ray"),
    ("ray_address", "10.0.0.1:6379", "10.0.0.1:6379"),
    ("ray_address", "ray://head:10001", "ray://head:10001"),
    ("ray_clones", "$SCRATCH/clones", "$SCRATCH/clones"),
    ("checkpoints", "s3://bucket/folder", "s3://bucket/folder"),
    ("checkpoints", "/mnt/common", "/mnt/common"),
    ("device", "cuda", "cuda"),
    ("cuda_graphs", "never", "never"),
]
BAD = [
    ("cuda_graphs", "always", "'auto'.*'never'.* found 'always'"),
    ("engine", "slrum", "'local'.*'slurm'.*'ray'.* found 'slrum'"),
    ("gpus", "0", "write all, a number of GPUs"),
    ("gpus", "[]", "write all, a number of GPUs"),
    ("gpus", "[1, 1]", "twice"),
    ("gpus", "some", "write all, a number of GPUs"),
    ("runs_per_gpu", "0", "greater than or equal to 1"),
    ("workers_at_most", "5000", "less than or equal to 1024"),
    ("sbatch", "--time=1 gpu", "gpu is no option"),
    ("sbatch", "'--comment=\"'", "quotation"),
    ("ray_address", "head", "write auto, or HOST:PORT"),
    ("ray_address", "http://head:8265", "write auto, or HOST:PORT"),
    ("ray_clones", "clones", "means another place on each machine"),
    ("checkpoints", "''", "at least 1"),
    ("gpus", "[", "not YAML"),
]


@pytest.mark.parametrize(("key", "text", "value"), GOOD)
def test_the_environment_takes_the_place_of_the_file(params, monkeypatch, key, text, value):
    assert getattr(read_params(params(**{key: yaml.safe_load(text)})).machine, key) == value
    monkeypatch.setenv(f"PIPELINE_{key.upper()}", text)
    machine = read_params(params()).machine
    assert getattr(machine, key) == value
    assert machine.model_copy(update={key: None}) == read_params(params()).machine.model_copy(update={key: None})


@pytest.mark.parametrize(("key", "text", "message"), BAD)
def test_what_cannot_be_meant_is_refused_where_it_was_written(params, monkeypatch, key, text, message):
    monkeypatch.setenv(f"PIPELINE_{key.upper()}", text)
    with pytest.raises(BadInputError, match=rf"PIPELINE_{key.upper()}\b.*{message}") as raised:
        read_params(params())
    assert "machine." not in str(raised.value)
    monkeypatch.delenv(f"PIPELINE_{key.upper()}")
    if message != "not YAML":
        with pytest.raises(BadInputError, match=rf"machine\.{key}: .*{message}"):
            read_params(params(**{key: yaml.safe_load(text)}))


def test_an_unknown_key_names_the_nearest(params):
    with pytest.raises(BadInputError, match=r"machine\.gpu: unknown key, did you mean gpus\?"):
        read_params(params(gpu=1))


def test_a_laptop_and_a_cluster_write_the_same_lock(project, tmp_path, monkeypatch):
    """What is settled for a machine, by the file or by the environment, is in no lock, and no stage runs again."""
    copy = project.copy(tmp_path / "project")
    for place in ("data/runs", "data/queries", "data/store", "metrics"):
        shutil.rmtree(copy.folder / place)
    (copy.folder / "dvc.lock").unlink()
    shutil.rmtree(copy.folder / ".dvc/cache/runs")
    cluster = {"workers": 1, "gpus": [0, 1], "runs_per_gpu": 2, "workers_at_most": 2, "sbatch": "--partition=gpu"}
    cluster |= {"ray_address": "head:6379", "ray_clones": "$SCRATCH/clones", "checkpoints": f"file://{tmp_path}/copies"}
    cluster["cuda_graphs"] = "never"
    copy.edit_params(lambda params: params["machine"].update(cluster))
    monkeypatch.setitem(ENVIRONMENT, "PIPELINE_ENGINE", "local")
    monkeypatch.setitem(ENVIRONMENT, "PIPELINE_WORKERS", "0")
    assert copy.repro()[-3:] == ["runs", "tabulate", "report"]
    assert (copy.folder / "dvc.lock").read_bytes() == (project.folder / "dvc.lock").read_bytes()
    for engine in ("slurm", "ray"):
        monkeypatch.setitem(ENVIRONMENT, "PIPELINE_ENGINE", engine)
        assert copy.repro() == []
