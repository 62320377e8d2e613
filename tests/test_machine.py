"""What a machine's owner chooses: read from a params file or the environment, checked, and in no lock of DVC's."""

import re
import shutil
from argparse import ArgumentTypeError

import pytest
import yaml

from pipeline import train
from pipeline.base.command import exit_with
from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.base.machine import OTHERS, Machine, variable, workers
from tests import GRID
from tests.conftest import ENVIRONMENT, ROOT


@pytest.fixture
def params(tmp_path, monkeypatch):
    monkeypatch.delenv("PIPELINE_DEVICE")

    def write(**machine):
        content = yaml.safe_load((GRID / "params.yaml").read_text())
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
    ("engine", "slrum", "choose among .*local.*, found 'slrum'"),
    ("gpus", "0", "write all, a number of GPUs"),
    ("gpus", "[]", "write all, a number of GPUs"),
    ("gpus", "[1, 1]", "twice"),
    ("gpus", "some", "write all, a number of GPUs"),
    ("runs_per_gpu", "0", "greater than or equal to 1"),
    ("workers_at_most", "5000", "less than or equal to 1024"),
    ("sbatch", "--time=1 gpu", "gpu is no option"),
    ("sbatch", "'--comment=\"'", "quotation"),
    *(
        ("sbatch", f"--time=1 {option}", f"the engine sets --{name} itself: leave {option}")
        for option, name in {
            "--array=0-3": "array",
            "-a0-3": "array",
            "--chdir=/": "chdir",
            "-D/": "chdir",
            "--output=x": "output",
            "--signal=TERM@9": "signal",
            "--sig=TERM@9": "signal",
            "--job-name=x": "job-name",
            "-Jx": "job-name",
            "--no-requeue": "no-requeue",
            "-ox": "output",
        }.items()
    ),
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


@pytest.mark.parametrize("place", [GRID, ROOT / "papers/comparison_glyphs", ROOT / "papers/photos"])
def test_what_readme_shows_is_made_on_a_cpu_also_where_there_is_a_gpu(place, monkeypatch):
    monkeypatch.delenv("PIPELINE_DEVICE")
    assert read_params(place / "params.yaml").machine.device == "cpu"


@pytest.mark.parametrize(("words", "expected"), [([], "cpu"), (["--device", "cuda"], "cuda")])
def test_train_takes_the_device_of_the_params_file(words, expected, monkeypatch, tmp_path):
    monkeypatch.delenv("PIPELINE_DEVICE")
    monkeypatch.chdir(GRID)

    class AskedError(Exception):
        pass

    def key(run, device):
        raise AskedError(device)

    monkeypatch.setattr(train, "training_key", key)
    command = ["train", "--dataset", "glyphs", "--loss", "proxy_an", "--seed", "0", "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", [*command, *words])
    with pytest.raises(AskedError, match=f"^{expected}$"):
        train.main()


def test_an_unknown_key_names_the_nearest(params):
    with pytest.raises(BadInputError, match=r"machine\.gpu: unknown key, did you mean gpus\?"):
        read_params(params(gpu=1))


def test_a_laptop_and_a_cluster_write_the_same_lock(project, tmp_path, monkeypatch):
    """What is settled for a machine, by the file or by the environment, is in no lock, and no stage runs again."""
    copy = project.copy(tmp_path / "project")
    for place in ("data/cached", "data/runs", "data/queries", "data/store", "metrics"):
        shutil.rmtree(copy.folder / place)
    (copy.folder / "dvc.lock").unlink()
    shutil.rmtree(copy.folder / ".dvc/cache/runs")
    cluster = {"workers": 1, "gpus": [0, 1], "runs_per_gpu": 2, "workers_at_most": 2, "sbatch": "--partition=gpu"}
    cluster |= {"ray_address": "head:6379", "ray_clones": "$SCRATCH/clones", "checkpoints": f"file://{tmp_path}/copies"}
    cluster["cuda_graphs"] = "never"
    copy.edit_params(lambda params: params["machine"].update(cluster))
    monkeypatch.setitem(ENVIRONMENT, "PIPELINE_ENGINE", "local")
    monkeypatch.setitem(ENVIRONMENT, "PIPELINE_WORKERS", "0")
    assert copy.repro()[-4:] == ["runs", "show", "tabulate", "report"]
    assert (copy.folder / "dvc.lock").read_bytes() == (project.folder / "dvc.lock").read_bytes()
    for engine in ("slurm", "ray"):
        monkeypatch.setitem(ENVIRONMENT, "PIPELINE_ENGINE", engine)
        assert copy.repro() == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PIPELINE_ENGNE", "slurm", "PIPELINE_ENGNE: unknown key, did you mean PIPELINE_ENGINE?"),
        ("PIPELINE_DEVISE", "cpu", "did you mean PIPELINE_DEVICE?"),
        ("PIPELINE_", "", "unknown key, "),
        ("PIPELINE_INSTRUCTIONS", "nativ", "write portable or native, found 'nativ'"),
        ("PIPELINE_INSTRUCTIONS", "", "write portable or native, found ''"),
        ("PIPELINE_WORKER", "x", "write a whole number, the worker's own, found 'x'"),
        ("PIPELINE_SHARED_BY", "0", "write the number of workers that share a GPU, found '0'"),
    ],
)
def test_a_variable_that_means_nothing_is_refused_by_every_command(monkeypatch, capsys, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as raised:
        exit_with(lambda: None)
    assert raised.value.code == 2 and message in capsys.readouterr().err


def test_every_variable_that_the_code_reads_is_known():
    text = "".join(path.read_text() for path in (ROOT / "pipeline").rglob("*.py"))
    named = {name for name in re.findall(r"PIPELINE_[A-Z_]*[A-Z]", text) if not name.endswith("_")}
    assert named <= {*OTHERS, *map(variable, Machine.model_fields)}


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "", "1025", "1" * 400])
def test_a_number_of_workers_that_cannot_be_is_refused(text):
    with pytest.raises(ArgumentTypeError, match="give a whole number from 0 to 1024"):
        workers(text)
    assert workers("0") == 0 and workers("1024") == 1024
