"""Why a run is not done: what it has other than the nearest run in the store."""

import json
from collections.abc import Iterable
from typing import Any

from pipeline.base.files import BadInputError, read_json
from pipeline.runs import store
from pipeline.runs.key import Key
from pipeline.runs.reach import code_hash, labels
from pipeline.runs.record import CODE, MetricsRecord, TrainingRecord

FIRST = ("dataset", "protocol", "loss", "subset", "recipe.backbone", "seed", "training")
"""What says which run it is. The nearest run differs in as few of these as possible, then in as few other things as
possible."""
NAMED = 6
"""The number of differences, and of definitions, that are named."""

Changes = dict[str, tuple[Any, Any]]
"""Name -> the old and the new value; None stands for a name that is not there."""


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one: names joined by dots -> values."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{name}.{key}" if name else key)
    return found


def _parts(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a key, as it is in a record, with short names."""
    flat = _flat(json.loads(json.dumps(content)))
    return {name.removeprefix("training.").removeprefix("settings."): value for name, value in flat.items()}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> Changes:
    names = dict.fromkeys([*new, *old])
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _distance(changes: Changes) -> tuple[int, int]:
    return sum(name.startswith(FIRST) and not name.startswith("loss_") for name in changes), len(changes)


def _listed(texts: list[str]) -> list[str]:
    more = [f"and {len(texts) - NAMED} more"] if len(texts) > NAMED else []
    return texts[:NAMED] + more


def changed_code(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """The places of the definitions that differ between two lists of code (`reach.code`)."""
    by_name = [{name: (place, of[place]) for place, name in labels([*of]).items()} for of in (old, new)]
    before, after = by_name
    changed = [place for name, (place, digits) in after.items() if name in before and before[name][1] != digits]
    added = [f"{place} (new)" for name, (place, _) in after.items() if name not in before]
    return changed + added + [f"{place} (gone)" for name, (place, _) in before.items() if name not in after]


def _code(record: TrainingRecord | MetricsRecord, new: dict[str, str]) -> str:
    """What differs in the code. Its list is in the store, or is damaged."""
    try:
        old = read_json(store.folder(record.key) / CODE)
        if code_hash(old) == record.content["code"]:
            return f"code: {', '.join(_listed(changed_code(old, new)))}"
    except (BadInputError, AttributeError, TypeError):
        pass
    return f"code: {store.folder(record.key) / CODE} is damaged"


def _text(name: str, change: tuple[Any, Any]) -> str:
    if name == "data.chosen_by":
        return "the run that chooses its epoch"
    if name == "members":
        return "the runs that it combines"
    if name == "training":
        return "its training"
    if name.startswith("data.") and not name.startswith("data.pretrained."):
        return f"{name.removeprefix('data.')}: other content"
    before, after = ("not there" if value is None else str(value) for value in change)
    for place in ("recipe.", "loss_settings.", "packages.", "data."):
        name = name.removeprefix(place)
    return f"{name} {before} -> {after}"


def differences(key: Key, records: Iterable[TrainingRecord | MetricsRecord]) -> list[str]:
    """What a key has other than the nearest of some records, as short texts: "alpha 32.0 -> 12.0", "code:
    pipeline.losses.unit", "torch 2.14.1 -> 2.15.0". Empty if there is no record."""
    wanted = _parts(key.content)
    compared = [(_changes(_parts(record.content), wanted), record) for record in records]
    if not compared:
        return []
    changes, nearest = min(compared, key=lambda pair: _distance(pair[0]))
    texts = [_text(name, change) for name, change in changes.items() if name != "code"]
    return _listed(texts) + ([_code(nearest, key.code)] if "code" in changes else [])
