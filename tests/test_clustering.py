from pathlib import Path

import numpy as np
import pytest

from pipeline.clustering import clustering_scores

GOLDEN = Path(__file__).parent / "golden" / "metrics.npz"


@pytest.mark.parametrize("case", ["cub_like", "sop_like", "imbalanced"])
def test_golden_values(case: str) -> None:
    golden = np.load(GOLDEN)
    scores = clustering_scores(golden[f"{case}/cluster_labels"], golden[f"{case}/labels"])
    for name, value in scores.items():
        assert value == pytest.approx(float(golden[f"{case}/{name}"]), rel=1e-12)
