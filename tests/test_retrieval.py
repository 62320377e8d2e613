from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.retrieval import recall_at_k, retrieval

GOLDEN = Path(__file__).parent / "golden" / "metrics.npz"


@pytest.mark.parametrize("case", ["cub_like", "sop_like", "imbalanced", "inshop_like"])
def test_golden_values(case: str) -> None:
    golden = {key.split("/")[1]: value for key, value in np.load(GOLDEN).items() if key.startswith(case + "/")}
    embeddings, labels = torch.from_numpy(golden["embeddings"]), torch.from_numpy(golden["labels"])
    ks = golden["ks"].tolist()
    search: dict[str, Any] = {}
    if "is_query" in golden:
        query = torch.from_numpy(golden["is_query"])
        search = {"gallery": embeddings[~query], "gallery_labels": labels[~query]}
        embeddings, labels = embeddings[query], labels[query]
    scores = retrieval(embeddings, labels, ks, **search)
    assert [scores[f"recall@{k}"] for k in ks] == golden["recall"].tolist()
    # The golden means were added up in float32.
    assert scores["map@r"] == pytest.approx(float(golden["map_at_r"]), abs=1e-8)
    assert scores["r_precision"] == pytest.approx(float(golden["r_precision"]), abs=1e-7)
    assert recall_at_k(embeddings, labels, ks, **search).items() <= scores.items()
    for counting in ("strict", "drop_first")[: 1 if search else 2]:
        assert retrieval(embeddings, labels, ks, **search, counting=counting) == scores
