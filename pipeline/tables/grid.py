"""The tables of a grid, made from its params file, the paper's printed numbers and the metrics files of its runs."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from pipeline.base.config import Params, Table, read_params
from pipeline.base.files import BadInputError
from pipeline.runs.grid import GridRun, grid_folder, grid_runs
from pipeline.tables import claim_lines, notes, search_blocks
from pipeline.tables.claims import FILE as CLAIMS
from pipeline.tables.claims import Claims, Finding, findings, read_claims
from pipeline.tables.class_chance import both_kinds
from pipeline.tables.columns import columns_of, numbers_of
from pipeline.tables.layouts import Content
from pipeline.tables.model import Block, Number, TableModel
from pipeline.tables.published import Published, PublishedTable, check_table, read_published
from pipeline.tables.rows import SELECTIONS, Row, collect_table, final_runs
from pipeline.tables.searches import searches
from pipeline.tables.spreads import Pools
from pipeline.tables.verdicts import RULE as JUDGED_RULE
from pipeline.tables.verdicts import judged


def layout_of(table: Table) -> ModuleType:
    """The file of pipeline/tables/layouts that a table names, or that of tables with a search."""
    return search_blocks if table.search else importlib.import_module(f"pipeline.tables.layouts.{table.layout}")


def read_grid(grid: str) -> tuple[Params, Published | None]:
    """The params file of a grid, and its published.yaml if it has one. Raises `BadInputError` if they do not agree."""
    folder = grid_folder(grid)
    params = read_params(folder / "params.yaml")
    file = folder / "published.yaml"
    published = read_published(file) if file.is_file() else None
    for name, table in params.tables.items():
        if published and layout_of(table).COMPARES:
            check_table(file, published, name, table)
            _check_numbers(file, published.tables[name], name, params, table)
    return params, published


def _check_numbers(file: Path, published: PublishedTable, name: str, params: Params, table: Table) -> None:
    """Raise `BadInputError` for a printed number that no run of the table gives."""
    for row, numbers in published.rows.items():
        dataset = row.partition("/")[0]
        given = numbers_of(params, table, dataset) if dataset in table.datasets else numbers
        for lacking in (number for number in numbers if number not in given):
            raise BadInputError(
                f"{file}: tables.{name}.rows.{row}.{lacking}: no run gives this number: add it to `metrics` or "
                "`recall_at` of the recipe, or remove it"
            )


def read_claims_of(grid: str, params: Params, published: Published | None) -> Claims | None:
    """A grid's claims.yaml; None if it has none. Raises `BadInputError` as `read_claims` does."""
    file = grid_folder(grid) / CLAIMS
    if not file.is_file():
        return None
    if "claims" in params.tables:
        raise BadInputError(
            f"{file.with_name('params.yaml')}: tables.claims: a grid with {CLAIMS} has claims by this name"
        )
    return read_claims(file, params, published)


@dataclass(frozen=True)
class GridContent:
    """All that a grid's tables and claims show."""

    published: Published | None
    tables: list[TableModel]
    findings: list[Finding]
    """What the runs say to each claim of claims.yaml; empty if there is none."""
    rule: str
    """The rule that chose the weights with which claims are tested; empty without claims."""
    pools: Pools

    @property
    def claims(self) -> list[Block]:
        """The claims as blocks of tables."""
        return claim_lines.blocks(self.findings, self.rule) if self.findings else []


def read_content(grid: str) -> GridContent:
    """The tables of a grid, and what its runs say to its claims. Raises `BadInputError` as `read_grid` and
    `read_claims` do."""
    params, published = read_grid(grid)
    claims = read_claims_of(grid, params, published)
    stated = published.spread.points if published and published.spread else None
    if claims and claims.spread is not None:
        stated = claims.spread
    runs = {name: grid_runs(grid, table=name) for name in params.tables}
    rows = {name: collect_table(final_runs(of), published) for name, of in runs.items()}
    pools = Pools(rows, stated)
    for row in (row for of in rows.values() for row in of):
        row.shared = pools.of
    tables = [_table(grid, name, params, published, pools, runs[name]) for name in params.tables]
    found = findings(claims, pools, published) if claims else []
    return GridContent(published, tables, found, claims.selection if claims else "", pools)


def _table(
    grid: str, name: str, params: Params, published: Published | None, pools: Pools, runs: list[GridRun]
) -> TableModel:
    table, rows = params.tables[name], pools.tables[name]
    layout, columns = layout_of(table), columns_of(params, table)
    own = published.tables.get(name) if published and layout.COMPARES else None
    printed = notes.others(own, table.datasets, []) if own else []
    if published and own is None and "loss" in table.rows:
        printed = notes.others_with_our_networks(published, table.datasets, rows)
    shown = {run.place for run in final_runs(runs)}
    tries = collect_table([run for run in runs if run.place not in shown], published)
    found = searches(runs, rows) if table.search else []
    return TableModel(
        grid=grid,
        name=name,
        title=own.title if own else table.title or f"{grid}: {name}",
        settings=table,
        rows=rows,
        numbers=[number for row in rows for number in _numbers(row, numbers_of(params, table), own, pools)],
        published=own,
        results=layout.blocks(Content(table, rows, columns, own, pools, found)),
        curves=notes.curves(rows, own) if own else [],
        printed=printed,
        peeking=notes.peeking(rows),
        chance=both_kinds(rows),
        warnings=notes.warnings(rows),
        mixtures=notes.mixtures(rows + tries),
        notes=[
            *([notes.numbers_mean(rows, pools)] if layout.COMPARES else []),
            *notes.groups_explained(columns),
            *(notes.verdicts_explained(own, pools.stated) if own else []),
            *notes.made_on(rows + tries),
        ],
        remarks=own.notes if own else [],
        complete=notes.how_complete(rows + tries),
        lacks=notes.what_lacks(rows + tries),
        tries=tries,
        searches=found,
    )


def _numbers(row: Row, metrics: list[str], published: PublishedTable | None, pools: Pools) -> list[Number]:
    """The numbers of a row that were run or printed, under every rule that chose the weights."""
    printed = published.printed(row.key) if published else {}
    numbers = []
    for rule in SELECTIONS:
        for metric in dict.fromkeys([*metrics, *printed]):
            cell, value = row.cell(rule, metric), printed.get(metric)
            if cell.values or (rule == "best_test_epoch" and metric in printed):
                said = judged(row, metric, published, pools) if rule == JUDGED_RULE else None
                numbers.append(Number(row, rule, metric, value, said))
    return numbers
