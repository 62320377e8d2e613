"""A history that an epoch is chosen by: checked whole when it is read."""

import json
from pathlib import Path

import pytest

from pipeline.base.config import read_params
from pipeline.base.files import BadInputError
from pipeline.runs.run import Run, best_epoch, last_epoch, read_history

RECIPE = read_params(Path(__file__).parent.parent / "params.yaml").recipes["glyphs"]


def lines(*recalls, first=1):
    """The lines of a history with these Recall@1, None where an epoch was not evaluated."""
    of = enumerate(recalls, start=first)
    return [{"epoch": n, "loss": 1.0} | ({} if value is None else {"recall": {"recall@1": value}}) for n, value in of]


def written(path, *content):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in content))
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lines(0.5, first=0), r"line 1: epoch: .* greater than or equal to 1, found 0"),
        (lines(0.5, first=-3), r"line 1: epoch: .* greater than or equal to 1, found -3"),
        (lines(0.5, first=2), "line 1 is not of epoch 1"),
        ([*lines(0.5), *lines(0.6)], "line 2 is not of epoch 2"),
        ([{"epoch": 1.5}], r"line 1: epoch: .* integer"),
        ([{"epoch": "1"}], r"line 1: epoch: .* integer"),
        ([{"epoch": True}], r"line 1: epoch: .* integer"),
        ([{"loss": 1.0}], "line 1: epoch: this key is missing"),
        (lines(float("nan")), r"line 1: recall\.recall@1: .* finite"),
        (lines(float("inf")), r"line 1: recall\.recall@1: .* finite"),
        (lines(1.5), r"line 1: recall\.recall@1: .* less than or equal to 1, found 1\.5"),
        (lines(-0.1), r"line 1: recall\.recall@1: .* greater than or equal to 0"),
        ([{"epoch": 1, "recall": {"recall@2": 0.5}}], "line 1 .* has no recall@1"),
        ([{"epoch": 1, "recall": 0.5}], r"line 1: recall: .* object"),
        ([{"epoch": 1, "recall": None}], r"line 1: recall: .* object"),
        (["{"], "line 1: .*[Ii]nvalid JSON"),
        (["<!DOCTYPE html>"], "line 1: .*[Ii]nvalid JSON"),
        (["null"], "line 1: "),
        (["[]"], "line 1: "),
        ([*lines(0.5), ""], "line 2: "),
        (lines(None, None), "has no epoch that was evaluated"),
        ([], "has no epoch that was evaluated"),
    ],
)
def test_a_history_that_is_none_is_named_with_its_line(tmp_path, content, said):
    path = written(tmp_path / "history.jsonl", *content)
    with pytest.raises(BadInputError, match=said) as raised:
        read_history(path)
    assert str(raised.value).startswith(str(path)) and "train the run" in str(raised.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "history.jsonl").write_bytes(b"\xff\xfe")
    for path, said in (
        (tmp_path / "history.jsonl", "cannot be read"),
        (tmp_path, "cannot be read"),
        (tmp_path / "a", "missing"),
    ):
        with pytest.raises(BadInputError, match=said):
            read_history(path)


def test_an_epoch_beyond_the_recipe_is_refused(tmp_path):
    path = written(tmp_path / "history.jsonl", *lines(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.2))
    assert best_epoch(read_history(path)) == 6
    run = Run(Path("params.yaml"), "glyphs", None, "proxy_an", [], 0, None, None, False, path, Path("out"), None, None)
    with pytest.raises(BadInputError, match=r"--until .*: its best epoch is 6, but the recipe has 5"):
        last_epoch(run, RECIPE)
    assert last_epoch(run, RECIPE.model_copy(update={"epochs": 6})) == 6
