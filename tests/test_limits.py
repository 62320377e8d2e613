"""What evaluation would refuse is known before training: the same cases, asked and evaluated."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.base.config import Recipe, read_params
from pipeline.base.files import BadInputError
from pipeline.metrics.limits import check_evaluation, evaluation_problems
from pipeline.work.evaluation import metrics
from tests import GRID

RECIPE = read_params(GRID / "params.yaml").recipes["glyphs"]
MANY = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
SCIKIT_LEARN = {"metrics": ["recall", "map_at_r", {"name": "nmi", "kmeans": "scikit-learn"}]}
DROP_FIRST = {"metrics": [{"name": "recall", "counting": "drop_first"}, "map_at_r", "class_map_at_r", "nmi"]}
CASES = [
    ({}, 0, MANY, None, None),
    ({}, 2**31 - 1, MANY, None, None),
    (SCIKIT_LEARN, 2**32 - 1, MANY, None, None),
    ({}, 0, MANY[1:5], MANY, None),
    (DROP_FIRST, 0, MANY, None, None),
    (DROP_FIRST, 0, MANY, MANY, "metrics.recall.counting: drop_first takes .* use exact or strict"),
    ({}, -1, MANY, None, "metrics.nmi.kmeans: faiss takes seeds from 0 to 2147483647, not -1"),
    ({}, 3_000_000_000, MANY, None, "metrics.nmi.kmeans: faiss takes seeds from 0 to 2147483647, not 3000000000"),
    (SCIKIT_LEARN, -1, MANY, None, "metrics.nmi.kmeans: scikit-learn takes seeds from 0 to 4294967295, not -1"),
    (SCIKIT_LEARN, 2**32, MANY, None, "metrics.nmi.kmeans: scikit-learn takes seeds from 0"),
    ({"recall_at": [1, 10]}, 0, MANY, None, "recall_at: 10 is more than the 9 images"),
    ({"recall_at": [1, 10]}, 0, MANY, MANY, None),
    ({"recall_at": [1, 11]}, 0, MANY, MANY, "recall_at: 11 is more than the 10 images"),
    ({}, 0, [0], None, "the split: 1 images are too few"),
    ({}, 0, [], None, "the split: 0 images are too few"),
    ({}, 0, MANY, [], "the split: 10 queries and 0 images to search are too few"),
    ({}, 0, [], MANY, "the split: 0 queries and 10 images"),
    ({}, 0, list(range(10)), None, "the split: no query has another image of its class"),
    ({}, 0, [7, 8, 9], MANY, "the split: no query has another image of its class"),
    ({}, 0, [0] * 10, None, "the split: .* one class"),
    ({}, 0, [0], [0] * 10, "the split: .* one class"),
]


@pytest.mark.parametrize(("update", "seed", "labels", "gallery", "problem"), CASES)
def test_what_evaluation_cannot_give_is_known_before(update, seed, labels, gallery, problem):
    recipe = Recipe.model_validate(RECIPE.model_dump() | {"recall_at": [1, 2]} | update)
    given, galleries = np.array(labels, np.int64), None if gallery is None else np.array(gallery, np.int64)
    found = evaluation_problems(recipe, seed, given, galleries)
    if problem:
        (message,) = found
        assert re.match(problem, message)
        return
    assert found == []
    together = torch.tensor(labels + (gallery or []))
    points = torch.nn.functional.normalize(torch.randn(len(together), 8, generator=torch.Generator().manual_seed(0)))
    search = {"embeddings": points[: len(labels)], "labels": together[: len(labels)]}
    if gallery is not None:
        search |= {"gallery": points[len(labels) :], "gallery_labels": together[len(labels) :]}
    test = SimpleNamespace(labels=together, search=lambda embeddings: search)
    scores = metrics(points, test, recipe, seed, torch.arange(len(together)))
    assert {f"recall@{k}" for k in recipe.recall_at} < scores.keys()
    json.dumps(scores, allow_nan=False)


def test_all_of_it_is_said_at_once():
    recipe = Recipe.model_validate(RECIPE.model_dump() | {"recall_at": [1, 100]} | DROP_FIRST)
    with pytest.raises(BadInputError) as raised:
        check_evaluation("params.yaml: recipes.mine", recipe, -1, np.array(MANY), 4)
    assert str(raised.value).startswith(
        "params.yaml: recipes.mine: its runs cannot be evaluated:\n  metrics.recall.counting: drop_first"
    )
    assert all(key in str(raised.value) for key in ("\n  recall_at: ", "\n  metrics.nmi.kmeans: "))
