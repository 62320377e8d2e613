"""One file for each layout of a table, which `layout` in params.yaml names: a function `blocks(content)`, and
`COMPARES`, which says whether it shows our numbers beside printed ones."""

from dataclasses import dataclass

from pipeline.base.config import Table
from pipeline.tables.published import PublishedTable
from pipeline.tables.rows import Row, is_extra, protocol_of
from pipeline.tables.searches import Searched
from pipeline.tables.spreads import Pools


@dataclass(frozen=True)
class Content:
    """What a layout arranges: the rows of a table, its settings, the numbers to show, the printed numbers, the spreads
    over seeds, and the searches."""

    settings: Table
    rows: list[Row]
    columns: list[str]
    published: PublishedTable | None
    pools: Pools
    searches: list[Searched]

    def of(self, dataset: str) -> list[Row]:
        """The rows of one dataset."""
        return [row for row in self.rows if row.dataset == dataset]


def rule_of(row: Row, rule: str) -> str:
    """The rule whose numbers of a row stand under `rule`. Without training there is nothing that held-out classes could
    choose."""
    return rule if rule != "held_out" or row.found[rule] or not is_extra(row) else "last_epoch"


def not_better(rows: list[Row], rule: str) -> list[str]:
    """Sentences that name the rows that are not better, by Recall@1, than what is reached without any training."""
    sentences = []
    for plain in rows:
        cell = plain.cell(rule_of(plain, rule), "recall@1")
        others = [row for row in rows if row.dataset == plain.dataset and not is_extra(row)]
        others = [row for row in others if row.cell(rule, "recall@1").values]
        if not protocol_of(plain).plain or not cell.values or not others:
            continue
        worse = [row for row in others if row.cell(rule, "recall@1").mean <= cell.mean]
        named = f"{plain.key}, Recall@1 {cell.text()}"
        if len(worse) == len(others):
            sentences.append(f"No row is better than {named}, which is reached without training.")
        elif worse:
            names = ", ".join(row.name for row in worse)
            sentences.append(f"Not better than {named}, which is reached without training: {names}.")
    return sentences
