"""MAP@R averaged by class: the mean over classes of the MAP@R of each class's queries. Every class counts the same,
where MAP@R counts a class by its number of images. The two agree if all classes have as many queries."""

import torch

from pipeline.metrics.found import Found

NAMES = {"class_map@r": "MAP@R by class"}


def metric(found: Found) -> dict[str, float]:
    """The metric, as a fraction. Queries without another image of their class, and classes of only such queries, are
    left out."""
    average_precision = found.any_ranks()[1]
    counted = ~average_precision.isnan()
    classes, group = found.query_labels[counted].unique(return_inverse=True)
    sums = torch.zeros(len(classes), dtype=torch.float64, device=group.device)
    # Not in float32, and on the CPU, because the order of a GPU's sums is not fixed.
    sums = sums.cpu().index_add_(0, group.cpu(), average_precision[counted].double().cpu())
    return {"class_map@r": (sums / torch.bincount(group.cpu())).mean().item()}
