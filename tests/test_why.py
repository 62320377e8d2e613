"""`python -m pipeline.status --why`: what a run that is not done has other than the nearest run in the store; and what
`pipeline.adopt` takes over in one call."""

import json
import re

import pytest

from tests import swap


@pytest.fixture(scope="module")
def copy(project, tmp_path_factory):
    return project.copy(tmp_path_factory.mktemp("why") / "project")


def why(copy):
    printed = copy.run("python", "-m", "pipeline.status", "default", "--why")
    return re.findall(r"^default/glyphs/glyphs/(.*)$", printed, re.M)


def test_nothing_is_said_where_everything_is_done(copy):
    assert why(copy) == []


def test_a_setting(copy):
    before = (copy.folder / "params.yaml").read_text()
    copy.edit_params(lambda params: params["losses"]["proxy_an"].update(alpha=12.0))
    assert why(copy) == ["proxy_an/0 and 1 more: alpha 32.0 -> 12.0"]
    copy.edit_params(lambda params: params["recipes"]["glyphs"]["optimiser"].update(weight_decay=0.5))
    assert why(copy) == [
        "proxy_an/0 and 1 more: alpha 32.0 -> 12.0; optimiser.weight_decay 0.0001 -> 0.5",
        "proxy_nca/0 and 1 more: optimiser.weight_decay 0.0001 -> 0.5",
    ]
    copy.edit_params(lambda params: params["tables"]["glyphs"].update(seeds=[0, 1, 2]))
    expected = {f"proxy_nca/2: seed {seed} -> 2; optimiser.weight_decay 0.0001 -> 0.5" for seed in (0, 1)}
    assert expected & set(why(copy)), "both seeds are equally near: their keys decide"
    (copy.folder / "params.yaml").write_text(before)
    copy.edit_params(
        lambda params: (
            params["recipes"]["glyphs"]["metrics"].remove("map_at_r"),
            params["tables"]["glyphs"]["columns"].remove("map@r"),
        )
    )
    lines = why(copy)
    assert len(lines) == 1 and re.match(r"raw_pixels/0 and 4 more: .*metrics", lines[0]), lines
    (copy.folder / "params.yaml").write_text(before)


def test_code_data_and_packages(copy):
    adam = copy.folder / "pipeline/training/optimisers/adam.py"
    text = swap(adam, "BETAS = (0.9, 0.999)", "BETAS = (0.9, 0.99)")
    assert why(copy) == ["proxy_an/0 and 3 more: code: pipeline.training.optimisers.adam.BETAS"]
    adam.write_text(text)
    file = copy.folder / "pipeline/metrics/clustering.py"
    text = swap(file, "ITERATIONS = 20", "ITERATIONS = 21")
    assert why(copy) == ["raw_pixels/0 and 4 more: code: pipeline.metrics.clustering.ITERATIONS"]
    file.write_text(text)
    manifest = copy.folder / "data/splits/glyphs/train.csv"
    text = manifest.read_text()
    manifest.unlink()  # a link into DVC's cache
    manifest.write_text(text + "\n")
    assert why(copy) == ["proxy_an/0 and 3 more: data/splits/glyphs/train.csv: other content"]
    manifest.write_text(text)
    assert why(copy) == []
    script = (
        "import importlib.metadata as m, sys; version = m.version; "
        "m.version = lambda name: version(name) + ('.1' if name == 'simplejpeg' else ''); "
        "from pipeline.status import main; sys.argv = ['status', 'default', '--why']; main()"
    )
    printed = copy.run("python", "-c", script)
    assert re.search(r"raw_pixels/0 and 4 more: simplejpeg (\S+) -> \1\.1$", printed, re.M), printed


def test_adopt_all_compares_one_run_for_each_change_of_code(copy):
    """Both losses reach a function that is written in another way, and so does a second table."""
    losses = copy.folder / "pipeline/losses/__init__.py"
    swap(losses, "return unit(embeddings) @ unit(proxies).T", "return unit(embeddings) @ (unit(proxies).T)[:, :]")
    before = why(copy)
    assert before == ["proxy_an/0 and 3 more: code: pipeline.losses.cosines"]
    adopt = ["python", "-m", "pipeline.adopt", "--because", "a slice of everything", "--epochs", "1"]
    printed = copy.run(*adopt, "--all")
    taken = re.findall(r"^default/glyphs/glyphs/(\S+): taken over from [0-9a-f]{64}$", printed, re.M)
    assert taken == ["proxy_an/0", "proxy_an/1", "proxy_nca/0", "proxy_nca/1"]
    again = re.findall(r"^default/glyphs/glyphs/(\S+) again epoch 1/1:", printed, re.M)
    assert again == ["proxy_an/0", "proxy_nca/0"], "one run for each change"
    copy.run("python", "-m", "pipeline.run_grid", "default", "glyphs")
    assert why(copy) == []
    run = copy.folder / "data/runs/default/glyphs/glyphs/proxy_nca/1"
    assert json.loads((run / "run.json").read_text())["taken_over"]["because"] == "a slice of everything"
    swap(losses, "(unit(proxies).T)[:, :]", "(unit(proxies).T)[:, 0:]")
    assert why(copy) == ["proxy_an/0 and 3 more: code: pipeline.losses.cosines"], "its list of code is the new one"
    assert "name a grid, or --all" in copy.run(*adopt, fails=2)
    assert "name a grid, or --all" in copy.run(*adopt, "default", "--all", fails=2)
