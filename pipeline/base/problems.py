"""What is wrong in settings, in one line each: the key's path, what is wrong, and the fix."""

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.base.names import shortened


def problem_lines(error: ValidationError, prefix: str, model: type[BaseModel]) -> list[str]:
    """One line for each problem: the key's path, what is wrong, and for an unknown key the nearest known key."""
    lines = []
    for problem in error.errors(include_url=False):
        path = [part for part in map(str, problem["loc"]) if part != "[key]"]
        path = [part if part.isprintable() and len(part) <= 80 else shortened(part) for part in path]
        key = ".".join([prefix, *path] if prefix else path) or "the file"
        message = problem["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        if problem["type"] == "extra_forbidden":
            of = _model(model, problem["loc"][:-1])
            moved: dict[str, str] = getattr(of, "MOVED", {})
            message = moved_to(moved[path[-1]]) if path[-1] in moved else unknown(path[-1], of.model_fields)
        elif problem["type"] == "missing":
            message = "this key is missing, add it"
        else:
            message += f", found {shortened(problem['input'])}"
        lines.append(f"{key}: {message}")
    return lines


def unknown(key: str, known: Iterable[str]) -> str:
    """A message that `key` is unknown, with the nearest known key or a list of all known keys."""
    nearest = difflib.get_close_matches(key, known, 1)
    fix = f"did you mean {nearest[0]}?" if nearest else f"choose among {', '.join(known) or 'none'}"
    return f"unknown key, {fix}"


def moved_to(place: str) -> str:
    """A message that an old key has a new place, which is its name or an example."""
    return f"this key has a new place: {place}"


def _model(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The model at a location inside `model`."""
    for part in location:
        if part in model.model_fields:
            annotation: Any = model.model_fields[str(part)].annotation
            inner = [annotation, *getattr(annotation, "__args__", ())]
            model = next((kind for kind in inner if inspect.isclass(kind) and issubclass(kind, BaseModel)), model)
    return model
