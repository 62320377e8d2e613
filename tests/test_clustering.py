import subprocess
import sys
from itertools import combinations
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

from pipeline.metrics.clustering import clustering, clustering_scores
from tests.conftest import ENVIRONMENT, ROOT

GOLDEN = Path(__file__).parent / "golden" / "metrics.npz"


@pytest.mark.parametrize("case", ["cub_like", "sop_like", "imbalanced"])
def test_golden_values(case: str) -> None:
    golden = np.load(GOLDEN)
    scores = clustering_scores(golden[f"{case}/cluster_labels"], golden[f"{case}/labels"])
    assert scores == {name: pytest.approx(float(golden[f"{case}/{name}"]), rel=1e-12) for name in scores}


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4)), min_size=1, max_size=40))
def test_equals_scikit_and_the_pairs_themselves(pairs: list[tuple[int, int]]) -> None:
    assignments, labels = np.array(pairs).T
    scores = clustering_scores(assignments, labels)
    for mean in ("arithmetic", "geometric"):
        theirs = normalized_mutual_info_score(labels, assignments, average_method=mean)
        assert scores[f"nmi_{mean}"] == pytest.approx(theirs, abs=1e-9)
    together = [(a == c, b == d) for (a, b), (c, d) in combinations(pairs, 2)]
    found, same = sum(cluster for cluster, _ in together), sum(label for _, label in together)
    both = sum(cluster and label for cluster, label in together)
    f1 = 2 * (both / found) * (both / same) / (both / found + both / same) if both else 0
    assert scores["f1"] == pytest.approx(f1, rel=1e-12)


def blobs(spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 8
    points = torch.randn(8, 16, generator=generator)[labels] + spread * torch.randn(400, 16, generator=generator)
    return torch.nn.functional.normalize(points, dim=1), 3 * labels


@pytest.mark.parametrize("kmeans", ["scikit-learn", "faiss"])
def test_repeats_for_a_seed_on_any_number_of_threads(kmeans: str) -> None:
    points, labels = blobs(1.5)
    before = [pool["num_threads"] for pool in threadpool_info()]
    scores = clustering(points, labels, seed=1, kmeans=kmeans)
    assert [pool["num_threads"] for pool in threadpool_info()][: len(before)] == before
    assert all(0.05 < value < 0.95 for value in scores.values())
    with threadpool_limits(3):
        assert clustering(points, labels, seed=1, kmeans=kmeans) == scores
    assert any(clustering(points, labels, seed=seed, kmeans=kmeans) != scores for seed in range(2, 6))


def test_faiss_is_held_to_the_kernels_that_every_processor_has() -> None:
    faiss.SIMDConfig.set_level(faiss.SIMDLevel_NONE)
    clustering(*blobs(1.5), seed=1, kmeans="faiss")
    assert faiss.SIMDConfig.get_level() == faiss.SIMDLevel_AVX2


@pytest.mark.parametrize("kmeans", ["scikit-learn", "faiss"])
def test_separate_classes_are_found(kmeans: str) -> None:
    best = max(
        clustering(*blobs(0.01), seed=seed, kmeans=kmeans)["f1"] for seed in range(20)
    )  # one start of faiss may go astray
    assert best == 1


@pytest.mark.parametrize("kmeans", ["scikit-learn", "faiss"])
@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6])
def test_classes_in_a_narrow_cone_are_found(kmeans: str, spread: float) -> None:
    points, labels = blobs(0.3)
    axis = torch.zeros(1, 16, dtype=torch.float64)
    axis[0, 3] = 1
    narrow = torch.nn.functional.normalize(axis + spread * points.double()).float()
    wide = max(clustering(points, labels, seed=seed, kmeans=kmeans)["nmi_arithmetic"] for seed in range(5))
    found = max(clustering(narrow, labels, seed=seed, kmeans=kmeans)["nmi_arithmetic"] for seed in range(5))
    assert wide > 0.9 and found > wide - 0.1


def test_a_collapsed_network_is_clustered() -> None:
    scores = clustering(torch.ones(30, 4) / 2, torch.arange(30) // 10, seed=0, kmeans="faiss")
    assert scores["nmi_arithmetic"] < 0.5


def test_wrong_input_is_named() -> None:
    points, labels = blobs(1)
    points[3] = torch.nan
    with pytest.raises(ValueError, match="1 rows of embeddings hold nan"):
        clustering(points, labels, seed=0, kmeans="faiss")
    with pytest.raises(ValueError, match="embeddings must be"):
        clustering(points[:0], labels[:0], seed=0, kmeans="faiss")
    with pytest.raises(ValueError, match="there must be as many"):
        clustering_scores(np.zeros(3, int), np.zeros(2, int))


@pytest.mark.parametrize("variables", [{"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "true"}])
def test_settings_of_threads_from_outside_neither_hang_nor_change_it(variables):
    """With fewer threads than it asks for, faiss's k-means would wait for ever."""
    script = """
import pipeline, torch
from pipeline.metrics.clustering import clustering
points = torch.nn.functional.normalize(torch.randn(600, 16, generator=torch.Generator().manual_seed(0)))
print(clustering(points, torch.arange(600) % 20, seed=0, kmeans="faiss"))
"""
    environments = (ENVIRONMENT, ENVIRONMENT | variables)
    first, second = (
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=300)
        for environment in environments
    )
    assert first.returncode == second.returncode == 0 and first.stdout == second.stdout != b""


def test_native_code_that_waits_for_ever_is_ended():
    script = """
import pipeline, threading
from pipeline.base.files import ended_after
with ended_after(0.2):
    threading.Event().wait()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=ENVIRONMENT, capture_output=True, timeout=60)
    assert done.returncode == 1 and b"most recent call first" in done.stderr
