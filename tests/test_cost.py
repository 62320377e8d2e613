"""What a run costs, by the model: operations, and the seconds in which its GPU waits for the processor."""

import pytest

from pipeline.runs.cost import BETWEEN_EPOCHS, KMEANS, MODELLED, cost, counted, modelled_seconds, waits
from pipeline.runs.grid import grid_runs


def run_of(grid, dataset, protocol):
    return next(run for run in grid_runs(grid) if (run.run.dataset, run.run.protocol) == (dataset, protocol))


@pytest.mark.parametrize(("grid", "kmeans"), [("proxygml", "scikit-learn"), ("proxy_an", "faiss")])
def test_a_gpu_waits_between_epochs_and_for_the_k_means_of_each_network_that_is_evaluated(grid, kmeans):
    run = run_of(grid, "cub", "test")
    recipe = run.run.recipe
    operations, weights = counted(recipe.backbone, recipe.pooling, recipe.input_size)
    between = recipe.epochs * BETWEEN_EPOCHS * weights
    each = KMEANS[kmeans] * 5924 * 100 * recipe.dimension
    assert waits(run) == pytest.approx(between + 2 * each) and operations > 10**9
    assert modelled_seconds(run) == pytest.approx(cost(run) / MODELLED + waits(run))


def test_a_run_that_only_chooses_an_epoch_is_not_clustered():
    run = run_of("proxygml", "cub", "choose_epoch")
    weights = counted(run.run.recipe.backbone, run.run.recipe.pooling, run.run.recipe.input_size)[1]
    assert waits(run) == pytest.approx(run.run.recipe.epochs * BETWEEN_EPOCHS * weights)
