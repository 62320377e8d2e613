"""The flags of float32 products: whatever others have set, a recipe's precision holds, and nothing raises."""

import pytest
import torch
from torch import backends

from pipeline.base.precision import GPU, OTHER, tf32, use_tf32
from pipeline.metrics.retrieval import recall_at_k
from pipeline.networks.network import computing
from tests.test_networks import DEFAULT


def older_flags():
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = True


SET_BY_OTHERS = {
    "the general flag": lambda: setattr(backends, "fp32_precision", "tf32"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "the older flags": older_flags,
    "convolutions alone": lambda: setattr(backends.cudnn.conv, "fp32_precision", "tf32"),
    "oneDNN in bfloat16": lambda: setattr(backends.mkldnn, "fp32_precision", "bf16"),
}


def flags():
    return [library.fp32_precision for library in (*GPU, *OTHER)]


def of_products():
    """The flags that products read; those above them only set these."""
    libraries = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    return [library.fp32_precision for library in libraries]


def expected(allowed):
    gpu = "tf32" if allowed else "ieee"
    return [gpu] * len(GPU) + ["ieee"] * len(OTHER)


def by_an_assignment():
    backends.mkldnn.fp32_precision = "ieee"


def by_flags():
    """Afterwards oneDNN has a flag of its own, and an assignment no longer reaches it."""
    with backends.mkldnn.flags(enabled=True):
        pass


@pytest.fixture(autouse=True, params=[by_an_assignment, by_flags])
def in_full_float32_afterwards(request):
    request.param()
    yield
    use_tf32(False)


@pytest.mark.parametrize("others", SET_BY_OTHERS.values(), ids=SET_BY_OTHERS)
def test_what_others_have_set_does_not_stay(others):
    for allowed in (False, True):
        others()
        use_tf32(allowed)
        assert flags() == expected(allowed)
        assert (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32) == (allowed, allowed)


@pytest.mark.parametrize("others", SET_BY_OTHERS.values(), ids=SET_BY_OTHERS)
def test_a_block_leaves_the_flags_as_it_found_them(others):
    others()
    before = flags()
    for allowed in (True, False):
        with tf32(allowed):
            assert of_products() == [*(["tf32" if allowed else "ieee"] * 2), "ieee", "ieee"]
        assert flags() == before


def test_a_search_inside_a_tf32_step_leaves_both_as_they_are():
    use_tf32(False)
    embeddings, labels = torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2)
    with computing(DEFAULT.model_copy(update={"precision": "tf32"})):
        for _ in range(2):
            assert recall_at_k(embeddings, labels, ks=[1]) == {"recall@1": 1.0}
            assert flags() == expected(True)
    assert flags() == expected(False)
