"""The files of a grid's tables as text: what `pipeline.tabulate` writes, and what a check makes again."""

import json
from pathlib import Path
from typing import Any

from pipeline.tables import claim_lines, formats
from pipeline.tables.grid import GridContent
from pipeline.tables.model import TableModel

TABLES, CURVES = Path("metrics/tables"), Path("metrics/curves")


def texts(grid: str, content: GridContent) -> dict[Path, str]:
    """Path -> text of every file of a grid's tables and claims, and of its curves, without the charts."""
    found = claim_texts(grid, content)
    for table in content.tables:
        found |= table_texts(table)
    return found | {CURVES / f"{grid}.csv": formats.learning_curves(content.tables)}


def place(table: TableModel) -> Path:
    """The path of a table's files, without their endings."""
    return TABLES / table.grid / table.name


def claims_page(grid: str, content: GridContent) -> list[str]:
    """The lines of the claims' page in Markdown, without its link."""
    title = content.published.paper if content.published else f"The claims of the grid {grid}"
    blocks = [line for block in content.claims for line in formats.block_lines(block)]
    return [f"# {formats.markdown(title)}", "", *blocks]


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def claim_texts(grid: str, content: GridContent) -> dict[Path, str]:
    """Path -> text of the files on a grid's claims; none without claims."""
    if not content.findings:
        return {}
    lines = [*claims_page(grid, content), "All that is known of each claim: [claims.json](claims.json).", ""]
    out = TABLES / grid / "claims"
    aggregate = claim_lines.aggregate(content.findings, content.rule)
    return {out.with_suffix(".md"): "\n".join(lines), out.with_suffix(".json"): _json(aggregate)}


def table_texts(table: TableModel) -> dict[Path, str]:
    """Path -> text of the files of a table in each format."""
    out, lines = place(table), formats.page(table)
    if table.chart:
        lines += [f"![{table.chart}]({out.stem}.svg)", ""]
    return {
        out.with_suffix(".md"): "\n".join([*lines, *formats.links(table.every, out.parent), ""]),
        out.with_suffix(".tex"): formats.latex(table),
        out.with_suffix(".csv"): formats.comma_separated(table),
        out.with_suffix(".json"): _json(formats.aggregate(table)),
    }
