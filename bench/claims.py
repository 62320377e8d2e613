"""Write docs/claims.md from metrics/tables/claims: `make claims`, then `python -m bench.claims`."""

import json
from pathlib import Path
from typing import Any

from pipeline.base.command import exit_with
from pipeline.base.files import write_text
from pipeline.tables.formats import markdown, padded

CLAIMS = Path("metrics/tables/claims/claims.json")
PAGE = Path("docs/claims.md")

HEAD = """\
# The papers' claims, tried on glyphs
`make claims` trains 180 runs, ten seeds each, which took 9 minutes on a 2-core Intel Xeon. `python -m bench.claims`
makes this page from its results. The claims are in `papers/claims/claims.yaml`, all numbers in
`metrics/tables/claims/`.

Nothing here reproduces a paper. Glyphs is another dataset with a small network from scratch, other batches than
Proxy-AN's (shuffled, where the paper draws three images of each of 27 classes) and alpha 32 throughout. A claim that
holds here may fail there, and the other way round. What can be seen is what a claim is, and what ten seeds can say
about it.

## What the runs say
"""

READ = """\
- The estimate is a difference of mean Recall@1 at the last epoch, in points, with its 95 % interval **over seeds**.
  The intervals hold for all claims together. *supported*: the interval is above 0; *contradicted*: below; *cannot
  say*: neither.
- *over test classes* is the 95 % interval of the same difference if other test classes were drawn (a paired bootstrap
  over the {classes} classes, with these seeds). It answers another question, and is not corrected for the number of
  claims.
- *find* is the smallest difference that ten seeds find with 80 % probability.

## How it is tested
The first three claims are the main effects of a 2 x 2 x 2 design: with and without the own-class bonus (S), the
masked softmax (M) and the regulariser (L) of ProxyGML, eight rows in all. An effect is the mean of the four rows that
have the part less the mean of the four that have not. The two claims on partial and imbalanced data are means over
two rates (0.2, 0.5) and two gammas (10, 50). Rows with the same training images share one spread over
seeds, unless a row's is grossly larger.

`python -m pipeline.plan claims` says what the seeds can show, before anything is run.
"""


def page(findings: list[dict[str, Any]]) -> str:
    """The text of docs/claims.md, from the content of claims.json."""
    head = ["claim", "verdict", "estimate", "over test classes", "p", "seeds", "find"]
    lines = [head]
    for of in findings:
        if "estimate" not in of:
            lines.append([of["claim"], of["state"], *["–"] * 4, f"{of['finds']:.2f}"])
            continue
        chance = of.get("over_test_classes")
        lines.append(
            [
                of["claim"],
                of["state"],
                f"{of['estimate']:+.2f} ({of['low']:+.2f} to {of['high']:+.2f})",
                f"{chance['low']:+.2f} to {chance['high']:+.2f}" if chance else "–",
                "<0.001" if of["p"] < 0.001 else f"{of['p']:.3f}",
                " to ".join(map(str, of["seeds"])),
                f"{of['finds']:.2f}",
            ]
        )
    classes = next((of["over_test_classes"]["n"] for of in findings if "over_test_classes" in of), 31)
    table = padded([[markdown(text) for text in line] for line in lines])
    return "\n".join([HEAD, *table, READ.format(classes=classes)])


def main() -> None:
    """Command line."""
    write_text(PAGE, page(json.loads(CLAIMS.read_text(encoding="utf-8"))))
    print(f"look at {PAGE}")


if __name__ == "__main__":
    exit_with(main)
