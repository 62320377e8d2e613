"""Claims as lines of tables, for claims.md, claims.json and the report."""

from collections import Counter
from typing import Any

from pipeline.tables.claims import Finding
from pipeline.tables.columns import heading
from pipeline.tables.model import Block, texts
from pipeline.tables.rows import SELECTIONS, gpus_of

HEAD = ["claim", "verdict", "estimate", "seeds", "printed", "planned seeds find", "seeds needed", "source"]
SIGNS = {
    "supported": ("✓", "good"),
    "contradicted": ("✗", "bad"),
    "cannot say": ("≈", "unknown"),
    "not run": ("○", "unknown"),
    "untestable": ("–", "unknown"),
    "REHEARSAL": ("R", "bad"),
}
"""State of a claim -> its sign and the name of its colour."""


def sentence(finding: Finding) -> str:
    """The claim, with its dataset and metric."""
    where = [of for of in (finding.dataset, heading(finding.claim.metric) if finding.dataset else "") if of]
    return finding.claim.claim + (f" ({', '.join(where)})" if where else "")


def estimate(finding: Finding) -> str:
    """The estimated difference with its interval, in points; "–" without runs."""
    found = finding.estimate
    return "–" if found is None else f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def needed(finding: Finding) -> str:
    """The seeds with which a test finds the printed size, as text."""
    if finding.printed is None:
        return "size not printed"
    if finding.printed + finding.claim.margin <= 0:
        return "contradicted as printed"
    return "no number" if finding.needed is None else str(finding.needed)


def line(finding: Finding) -> list[str]:
    """The line of a claim that runs can test."""
    seeds = " to ".join(map(str, sorted({finding.seeds[0], finding.seeds[-1]}))) if finding.seeds else "–"
    return [
        sentence(finding),
        finding.state,
        estimate(finding),
        f"{seeds} of {finding.seeds_planned}",
        "–" if finding.printed is None else f"{finding.printed:+.1f}",
        "–" if finding.sees is None else f"{finding.sees:.2f}",
        needed(finding),
        finding.claim.source,
    ]


def blocks(findings: list[Finding], rule: str) -> list[Block]:
    """The claims that runs can test, and those that no run can test with the reason."""
    tested = [finding for finding in findings if finding.state != "untestable"]
    others = [finding for finding in findings if finding.state == "untestable"]
    margins = [finding for finding in tested if finding.claim.margin]
    notes = [
        "A claim is a difference of means over seeds, in points. supported: the whole 95 % interval is above 0. "
        "contradicted: it is wholly below. cannot say: anything else. Intervals and tests hold for "
        f"{len(tested)} claims together (Bonferroni), by Student's t with the spread that rows share. They are over "
        "seeds and say nothing of other test classes.",
        f"{SELECTIONS[rule]}.",
        "planned seeds find: the smallest difference that they find with 80 % probability. seeds needed: those that "
        "find the printed size with 80 % probability.",
    ]
    notes += [f"{sentence(of)}: the interval is held against -{of.claim.margin} in place of 0." for of in margins]
    for finding in tested:
        if len(gpus := gpus_of([row for _, row in finding.rows])) > 1:
            notes.append(
                f"{sentence(finding)}: its runs were made on different GPUs ({'; '.join(gpus)}), so the difference "
                "may come from the GPU."
            )
    found = [Block("Claims", HEAD, texts(*map(line, tested)), notes=notes)]
    if others:
        reasons = [[sentence(of), of.claim.untestable or "", of.claim.source] for of in others]
        found.append(Block("Claims that no run can test", ["claim", "why", "source"], texts(*reasons)))
    return found


def counts(findings: list[Finding]) -> dict[str, int]:
    """State -> the number of claims with it, in the order of `SIGNS`."""
    said: Counter[str] = Counter(finding.state for finding in findings)
    return {state: said[state] for state in SIGNS if said[state]}


def aggregate(findings: list[Finding], rule: str) -> list[dict[str, Any]]:
    """All that is known of each claim, for claims.json. Numbers are in points."""
    found = []
    for finding in findings:
        of: dict[str, Any] = {"claim": finding.claim.claim, "state": finding.state, "source": finding.claim.source}
        if finding.state == "untestable":
            found.append(of | {"untestable": finding.claim.untestable})
            continue
        of |= {"dataset": finding.dataset, "metric": finding.claim.metric, "selection": rule}
        of |= {"margin": finding.claim.margin, "printed": _rounded(finding.printed), "seeds_needed": finding.needed}
        of["finds"] = _rounded(finding.sees)
        if finding.estimate is not None:
            test = finding.estimate
            of |= {"estimate": _rounded(test.value), "low": _rounded(test.low), "high": _rounded(test.high)}
            of |= {"p": round(test.p, 4), "df": round(test.df, 1), "tests": test.tests, "seeds": list(finding.seeds)}
            of |= {"test": finding.test, "rows": {row.name: round(weight, 4) for weight, row in finding.rows}}
        if finding.classes is not None:
            chance = finding.classes
            of["over_test_classes"] = {"low": _rounded(chance.low), "high": _rounded(chance.high), "n": chance.classes}
        found.append(of)
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
