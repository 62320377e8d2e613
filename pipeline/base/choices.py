"""What the settings choose by name: a loss, an optimiser, a schedule, a metric. Each is a file of a room.

`name` in the settings is the file, such as `sgd`, or file and variant, such as `torch/RMSprop`, for a file that adapts
a library. All other settings are keyword arguments of the one function or class of that file, with their annotated
ranges. Arguments before the `*` come from the pipeline.

Names of keys are checked by the file's text in every reader of a params file. Importing the file would take seconds,
because it imports torch. Values are checked by the imported file, before its run is started.
"""

import ast
import difflib
import functools
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from pipeline.base.files import BadInputError, module_file, submodule
from pipeline.base.problems import problem_lines, unknown


@dataclass(frozen=True)
class Room:
    """A folder of files that can be chosen, as a package below `pipeline`, and what each file has: a class or a
    function."""

    package: str
    has: str


ROOMS = {
    "loss": Room("losses", "Loss"),
    "optimiser": Room("training.optimisers", "optimiser"),
    "schedule": Room("training.schedules", "schedule"),
    "augment": Room("training.augmentations", "Augmentation"),
    "engine": Room("engines", "work"),
    "metric": Room("metrics.by_name", "metric"),
}
"""What is chosen -> its room."""


def chosen_file(name: str) -> str:
    """The file that a name means: the part before a slash."""
    return name.partition("/")[0]


@dataclass(frozen=True)
class Argument:
    """A keyword argument: whether it must be given, its default, and whether it is a float."""

    needed: bool
    default: Any
    is_float: bool


@functools.cache
def arguments(what: str, file: str) -> dict[str, Argument] | None:
    """The keyword arguments of a file, read from its text. None if there is no such file, or if the text does not show
    them, as for an adapter of a library."""
    room = ROOMS[what]
    try:
        tree = ast.parse(module_file(room.package, file).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == room.has:
                methods = node.body if isinstance(node, ast.ClassDef) else [node]
                found = [of for of in methods if isinstance(of, ast.FunctionDef) and of.name in ("__init__", room.has)]
                return _arguments(found[0].args) if found else {}
    except (BadInputError, SyntaxError, ValueError, OSError):
        return None
    return None


def files(what: str) -> list[str]:
    """The files that can be chosen."""
    folder = Path(__file__).parents[1].joinpath(*ROOMS[what].package.split("."))
    return sorted(path.stem for path in folder.glob("*.py") if not path.name.startswith("_"))


@functools.cache
def metric_names(file: str) -> dict[str, str]:
    """The names of the numbers that a metric gives, and their headings, read from its file's text."""
    tree = ast.parse(module_file(ROOMS["metric"].package, file).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NAMES":
            names: dict[str, str] = ast.literal_eval(node.value)
            return names
    raise BadInputError(f"metrics/by_name/{file}.py has no NAMES: add the names of its numbers and their headings")


def _arguments(args: ast.arguments) -> dict[str, Argument] | None:
    if args.kwarg:
        return None
    pairs = zip(args.kwonlyargs, args.kw_defaults, strict=True)
    return {
        name.arg: Argument(value is None, value and ast.literal_eval(value), _is_float(name.annotation))
        for name, value in pairs
    }


def _is_float(annotation: ast.expr | None) -> bool:
    """Whether an annotation is float, Annotated[float, ...], or one of the floats of pipeline.base.numbers."""
    text = ast.unparse(annotation) if annotation else ""
    return text in ("float", "Rate", "Factor") or text.startswith(("Annotated[float,", "Annotated[Factor,"))


def with_defaults(what: str, file: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the file's defaults. For a float 12 becomes 12.0, so that both mean the same run."""
    known = arguments(what, file) or {}
    defaults = {name: argument.default for name, argument in known.items() if not argument.needed}
    return {
        name: float(value) if name in known and known[name].is_float and type(value) is int else value
        for name, value in (defaults | settings).items()
    }


def key_problems(what: str, file: str, settings: Iterable[str], given: Iterable[str] = ()) -> list[str]:
    """Unknown and missing keys of settings, by the file's text. Keys in `given` are given elsewhere."""
    try:
        module_file(ROOMS[what].package, file)
    except BadInputError as error:
        return [f": {error}"]
    known = arguments(what, file)
    if known is None:
        return []
    missing = {name for name, argument in known.items() if argument.needed} - {*settings} - {*given}
    return [
        *(f".{key}: {unknown(key, known)}" for key in settings if key not in known),
        *(f".{key}: this key is missing, add it" for key in known if key in missing),
    ]


def chosen(what: str, name: str) -> Any:
    """The class or function that a name means, with its variant given if it takes one. The file is imported. Raises
    `BadInputError` for a file that does not exist, or for a variant where none is taken, or none where one is."""
    file, _, variant = name.partition("/")
    module, has = submodule(ROOMS[what].package, file), ROOMS[what].has
    if not hasattr(module, has):
        raise BadInputError(f"{path_of(module.__name__)} has no {has}: a {what} is a class or function of this name")
    found = getattr(module, has)
    if "variant" not in inspect.signature(found).parameters:
        if variant:
            raise BadInputError(f"{file} has no variants: write {file}")
        return found
    if not variant:
        raise BadInputError(f"{file} holds several of a library: add a name of that library, as in {file}/NAME")
    return functools.partial(found, variant=variant)


def path_of(module: str) -> str:
    """The path of a module's file in the project."""
    return f"{module.replace('.', '/')}.py"


def settings_model(found: Any) -> type[BaseModel] | None:
    """A model of the keyword arguments of a class or function; None if it takes any. Raises `BadInputError` if one has
    no annotation."""
    taken = inspect.signature(found).parameters.values()
    if any(argument.kind is argument.VAR_KEYWORD for argument in taken):
        return None
    for argument in taken:
        if argument.kind is argument.KEYWORD_ONLY and argument.annotation is argument.empty:
            raise BadInputError(
                f"{path_of(found.__module__)}: the argument {argument.name} of {found.__name__} has no annotation: add "
                f"one, such as {argument.name}: float"
            )
    fields: dict[str, Any] = {
        argument.name: (argument.annotation, ... if argument.default is argument.empty else argument.default)
        for argument in taken
        if argument.kind is argument.KEYWORD_ONLY and argument.name != "variant"
    }
    strict = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return create_model("Settings", __config__=strict, **fields)


def value_problems(
    what: str, name: str, settings: dict[str, Any], place: str, tried: tuple[Any, ...] | None = None
) -> list[str]:
    """The problems of settings for a file, which is imported. If its first arguments are given in `tried`, it is also
    called, because it may refuse values that are impossible together. `place` says where the settings are."""
    try:
        found = chosen(what, name)
        model = settings_model(found)
        if model:
            model.model_validate(settings)
        if tried is not None:
            found(*tried, **settings)
    except ValidationError as error:
        return problem_lines(error, place, model) if model else []
    except (BadInputError, ValueError, TypeError) as error:
        return [f"{place}: {error}"]
    return []


def library_name(name: str, names: Sequence[str], place: str = "") -> str:
    """`name`, if it is one of a library's `names` that an adapter takes. Raises `ValueError` for another one, with
    `place` before it."""
    if name not in names:
        nearest = difflib.get_close_matches(name, names, 1)
        fix = f"did you mean {nearest[0]}?" if nearest else f"choose among {', '.join(names)}"
        raise ValueError(f"{place}{name} is not one of the names that can be used, {fix}")
    return name


def check_library_settings(known: dict[str, Any], settings: dict[str, Any], place: str = "") -> None:
    """Raise `ValueError` for a setting of a library's class that is not among `known`, or that is of another kind than
    its default there. `place` is put before a setting's name in the message."""
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"{place}{name}: {unknown(name, known)}")
        default = known[name]
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ValueError(f"{place}{name}: give true or false, found {value!r}")
        if isinstance(default, tuple) and (not isinstance(value, list) or len(value) != len(default)):
            raise ValueError(f"{place}{name}: give a list of {len(default)} numbers, found {value!r}")
        if isinstance(default, int | float) and not isinstance(default, bool) and isinstance(value, bool | str):
            raise ValueError(f"{place}{name}: give a number, found {value!r}")
    missing = [name for name, default in known.items() if default is inspect.Parameter.empty and name not in settings]
    if missing:
        raise ValueError(f"{place}{missing[0]}: this key is missing, add it")
