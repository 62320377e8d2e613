"""The recipe and the settings of each row of a table: what the rows share, and what each has of its own."""

import json
from dataclasses import dataclass
from typing import Any

from pipeline.runs.key import settings_of
from pipeline.tables.model import TableModel
from pipeline.tables.rows import Row, is_extra, protocol_of

LEFT_OUT = ("dataset", "seed", "protocol")


@dataclass(frozen=True)
class DatasetSettings:
    """The settings of a table's rows on a dataset, as lines of name and text: `shared` by all of them, and of each row
    with its seeds."""

    dataset: str
    shared: list[tuple[str, str]]
    rows: list[tuple[str, str]]


def settings(table: TableModel) -> list[DatasetSettings]:
    """The settings of a table, for each of its datasets."""
    return [_of(dataset, [row for row in table.rows if row.dataset == dataset]) for dataset in table.settings.datasets]


def _of(dataset: str, rows: list[Row]) -> DatasetSettings:
    flat = {row.name: _flat(settings_of(row.runs[0].run)) for row in rows if not is_extra(row)}
    every = list(flat.values())
    shared = (
        {name: text for name, text in every[0].items() if all(of.get(name) == text for of in every)} if every else {}
    )
    lines = []
    for row in rows:
        own = [f"{name} {text}" for name, text in flat.get(row.name, {}).items() if name not in shared]
        seeds = ", ".join(dict.fromkeys(str(run.run.seed) for run in row.runs))
        said = protocol_of(row).said if is_extra(row) else ", ".join(own) or "as all rows"
        lines.append((row.name, f"{said}; seeds {seeds}" if row.planned > 1 else f"{said}; seed {seeds}"))
    return DatasetSettings(dataset, list(shared.items()), lines)


def _flat(settings: dict[str, Any], place: str = "") -> dict[str, str]:
    """Nested settings as one mapping: name, joined by dots -> value as text. A recipe's and a loss's own settings have
    short names."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, "" if key in ("recipe", "loss_settings") else f"{place}{key}.")
        elif place or key not in LEFT_OUT:
            found[f"{place}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found
