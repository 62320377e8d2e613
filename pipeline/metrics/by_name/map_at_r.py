"""MAP@R and R-Precision, means over the queries with another image of their class (Musgrave, Belongie, Lim 2020, arXiv
2003.08505). The file `pipeline/metrics/retrieval.py` has the definitions."""

from pipeline.metrics.found import Found

NAMES = {"map@r": "MAP@R", "r_precision": "R-Precision"}


def metric(found: Found) -> dict[str, float]:
    """Both metrics, as fractions."""
    _, average_precision, r_precision = found.any_ranks()
    return {"map@r": average_precision.nanmean().item(), "r_precision": r_precision.nanmean().item()}
