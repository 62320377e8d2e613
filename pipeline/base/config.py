"""Parameters: read from YAML, and all checked before any time is spent on a run.

A recipe's keys are the fields of `Recipe`; the keys of a loss, and of what a recipe chooses by name, are the keyword
arguments of its file. An unknown or missing key, and a value of a wrong type or an impossible one, raise
`BadInputError`. The message names the file, the key and the nearest known key.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.base import checks
from pipeline.base.files import BadInputError
from pipeline.base.machine import Machine, from_environment, variable
from pipeline.base.names import Name, folder_name
from pipeline.base.params import Params, Table
from pipeline.base.problems import problem_lines
from pipeline.base.recipe import STRICT, Positive, Recipe, replaced
from pipeline.base.yaml_files import parse_yaml, read_yaml

__all__ = [  # noqa: RUF022 - in the order of their use
    "STRICT", "Positive", "Name", "Recipe", "Table", "Machine", "Params", "folder_name",
    "problem_lines", "read_yaml", "read_params",
]  # fmt: skip


def _changed(content: Any, path: Path, entries: dict[str, tuple[str, str | None]], changes: Sequence[str]) -> Any:
    """The content of a params file with a run's `changes`. `entries` says where "recipe" and "loss" are in it: part ->
    section and entry. Raises `BadInputError` for a change that cannot be made."""
    places = [change.partition("=")[0] for change in changes]
    for change, place in zip(changes, places, strict=True):
        part, dot, key = place.partition(".")
        if part not in entries or not dot or not key or "=" not in change:
            raise BadInputError(f"--set {change}: write recipe.KEY=VALUE or loss.KEY=VALUE")
        if places.count(place) > 1:
            raise BadInputError(f"--set {change}: {place} is set twice, give it once")
        section, entry = entries[part]
        try:
            # A copy: entries that share an anchor are one object.
            changed = replaced(content[section][entry], key, parse_yaml(change.partition("=")[2], f"--set {change}"))
        except (KeyError, TypeError):
            raise BadInputError(f"{path}: {section}.{entry}: there is no such entry to set {key} of") from None
        content = content | {section: content[section] | {entry: changed}}
    return content


def read_params(path: Path, recipe: str | None = None, loss: str | None = None, changes: Sequence[str] = ()) -> Params:
    """Read and check a params.yaml. For a run, check also that its recipe exists and that its loss accepts its keys.

    `changes` are texts such as "recipe.dimension=64" or "loss.alpha=12.0". They are made to the run's own recipe and
    loss before the check. Environment variables for the machine replace the file's keys. A run does not import other
    losses, so their files are no inputs of the run. For other losses only the names of keys are checked, which the text
    of their files shows, and not the values. Raises `BadInputError` with all problems found.
    """
    content = _changed(read_yaml(path), path, {"recipe": ("recipes", recipe), "loss": ("losses", loss)}, changes)
    own = from_environment()
    if own and isinstance(content, dict) and isinstance(content.get("machine"), dict):
        content = content | {"machine": content["machine"] | own}
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        problems = problem_lines(error, "", Params)
        for key in own:  # The user has to change the variable, not the file.
            problems = [re.sub(rf"^machine\.{key}\b", variable(key), problem) for problem in problems]
    else:
        problems = checks.problems(params, recipe, loss)
    if problems:
        raise BadInputError("\n  ".join([f"{path}:", *problems]))
    return params
