"""Checks of a params file beyond single values: between its entries, and of the files that the entries name."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from pipeline.base.files import BadInputError, module_file, submodule
from pipeline.base.names import each_once, shortened
from pipeline.base.yaml_files import parse_yaml

if TYPE_CHECKING:
    from pipeline.base.config import Params, Recipe, Table

SUBSETS = ("rate", "gamma")
"""The axes that choose a training set."""


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
            message = unknown(path[-1], _fields(model, problem["loc"][:-1]))
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


def _fields(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that `model` knows at a location inside it."""
    for part in location:
        if part in model.model_fields:
            annotation: Any = model.model_fields[str(part)].annotation
            inner = [annotation, *getattr(annotation, "__args__", ())]
            model = next((kind for kind in inner if inspect.isclass(kind) and issubclass(kind, BaseModel)), model)
    return list(model.model_fields)


def problems(params: Params, recipe: str | None, loss: str | None) -> list[str]:
    """The problems in `params`, each with its key. For the entry `loss` the loss's module is imported and its settings
    are checked as well."""
    found = [f"losses.{problem}" for problem in _unfit_losses(params)]
    found += [f"recipes.{name}.{problem}" for name, of in params.recipes.items() for problem in _contradictions(of)]
    try:
        each_once(list(params.tables))
    except ValueError as error:
        found.append(f"tables: {error}")
    found += [
        f"tables.{name}{problem}" for name, of in params.tables.items() for problem in _table_problems(params, of)
    ]
    if not found:
        if recipe and recipe not in params.recipes:
            found.append(f"recipes.{recipe}: there is no such recipe, add it or use one of {', '.join(params.recipes)}")
        found += _loss_problems(params, loss) if loss else []
    return list(dict.fromkeys(found))


@functools.cache
def loss_keywords(file: str) -> dict[str, bool] | None:
    """The keyword arguments of a loss, read from its file's text: name -> whether it must be given. None if the text
    does not show them. Importing the file would take seconds, and would make it an input of every reader of the params
    file."""
    try:
        tree = ast.parse(module_file("losses", file).read_text(encoding="utf-8"))
    except (BadInputError, SyntaxError, ValueError, OSError):
        return None
    for loss in tree.body:
        for method in loss.body if isinstance(loss, ast.ClassDef) and loss.name == "Loss" else ():
            if isinstance(method, ast.FunctionDef) and method.name == "__init__" and not method.args.kwarg:
                names = (argument.arg for argument in method.args.kwonlyargs)
                return {name: default is None for name, default in zip(names, method.args.kw_defaults, strict=True)}
    return None


def _unfit_losses(params: Params) -> Iterator[str]:
    """Entries of `losses` whose file does not exist, or whose keys the file does not know or lacks."""
    axes = set().union(*(table.rows for table in params.tables.values()))
    for name in params.losses:
        file, settings = params.loss(name)
        try:
            module_file("losses", str(file))
        except BadInputError as error:
            yield f"{name}: {error}"
            continue
        keywords = loss_keywords(str(file))
        if keywords is not None:
            yield from (f"{name}.{key}: {unknown(key, keywords)}" for key in settings if key not in keywords)
            missing = {key for key, needed in keywords.items() if needed} - settings.keys() - axes
            yield from (f"{name}.{key}: this key is missing, add it" for key in keywords if key in missing)


def _table_problems(params: Params, table: Table) -> Iterator[str]:
    """The problems of a table: names that do not exist, and values that no run can have."""
    axes = table.rows
    texts = {
        key: [value for value in axes[key] if not isinstance(value, str)] for key in ("loss", "recipe") if key in axes
    }
    if any(texts.values()):
        yield from (f".rows.{key}: {values[0]} is a number, give names" for key, values in texts.items() if values)
        return
    if "loss" not in axes and not table.loss:
        yield ".loss: this key is missing and the rows name no loss, add it"
        return
    if "loss" in axes and table.loss:
        yield ".loss: the rows name the losses, remove this key"
    losses = [str(loss) for loss in axes.get("loss", [table.loss])]
    entries = {params.loss_entry(loss, dataset) for loss in losses for dataset in table.datasets}
    place = "rows.loss" if "loss" in axes else "loss"
    yield from (f".{place}: {loss} has no settings, add losses.{loss}" for loss in sorted(entries - set(params.losses)))
    stems = [f"{recipe}_" if recipe else "" for recipe in axes.get("recipe", [""])]
    recipes = {f"{stem}{dataset}" for stem in stems for dataset in table.datasets}
    yield from (f": {of} has no recipe, add recipes.{of}" for of in sorted(recipes - set(params.recipes)))
    yield from _axis_problems(params, table, entries & set(params.losses))
    for of in sorted(recipes & set(params.recipes)):
        yield from (f".rows{problem}" for problem in _variant_problems(params.recipes[of], of, axes))


def _axis_problems(params: Params, table: Table, losses: set[str]) -> Iterator[str]:
    """Axes that neither recipes nor losses have, axes that both have, and values that an axis cannot have."""
    special = ("loss", "recipe", *SUBSETS)
    known = {*special, *(field for recipe in params.recipes.values() for field in type(recipe).model_fields)}
    of_entry = {entry: loss_keywords(str(params.loss(entry)[0])) for entry in sorted(losses)}
    keywords = {entry: found for entry, found in of_entry.items() if found is not None}
    for key, values in table.rows.items():
        without = [entry for entry, found in keywords.items() if key not in found]
        nearest = difflib.get_close_matches(key, [*known, *(name for found in keywords.values() for name in found)], 1)
        if key in known and len(without) < len(keywords):
            yield f".rows.{key}: a loss also has this key and the rows would not set it, name entries of losses instead"
        elif key not in known and without and (key in nearest or not nearest):
            yield f".rows.{key}: {', '.join(without)} and recipes have no such key"
        elif key not in known and without:
            yield f".rows.{key}: unknown key, did you mean {nearest[0]}?"
        if key not in ("loss", "recipe"):
            yield from (f".rows.{key}: {problem}" for value in values if (problem := _changed_on_the_way(value)))
        wrong = [value for value in values if key in SUBSETS and not _fits_subset(key, value)]
        if wrong:
            range_ = "numbers with a point, above 0.0 and up to 1.0" if key == "rate" else "whole numbers, 1 to 1000000"
            yield f".rows.{key}: found {wrong[0]!r}, give {range_}"
    if all(key in table.rows for key in SUBSETS):
        yield ".rows: rate and gamma each choose the training images, keep one of them"


def _fits_subset(key: str, value: str | int | float) -> bool:
    # The value is part of the subset's file name: 1 would ask for partial_1.csv, but the file is partial_1.0.csv.
    return isinstance(value, float) and 0 < value <= 1 if key == "rate" else type(value) is int and 1 <= value <= 10**6


def _changed_on_the_way(value: str | int | float) -> str:
    """Why a text would be read as another value from a run's command line, where it has no quotes. Empty if it would be
    read as it is."""
    if not isinstance(value, str):
        return ""
    try:
        read = parse_yaml(value, "")
    except BadInputError:
        read = None
    return "" if read == value else f"{value!r} would be read as {read!r}, choose another value"


def _variant_problems(recipe: Recipe, name: str, axes: dict[str, list[str | int | float]]) -> Iterator[str]:
    """The problems of a recipe after a table's rows have changed it. Each problem begins with a dot or a colon."""
    model = type(recipe)
    changed = {key: values for key, values in axes.items() if key in model.model_fields}
    for combination in itertools.product(*changed.values()):
        values = dict(zip(changed, combination, strict=True))
        try:
            variant = model.model_validate(recipe.model_dump() | values)
        except ValidationError as error:
            yield from (f".{line}" for line in problem_lines(error, "", model))
        else:
            row = ", ".join(f"{key} {value}" for key, value in values.items())
            yield from (f": {row} in recipes.{name}: {problem}" for problem in _contradictions(variant) if values)


def _contradictions(recipe: Recipe) -> list[str]:
    """The settings of one recipe that contradict each other."""
    found = []
    if 1 not in recipe.recall_at:
        found.append("recall_at: 1 is missing, the best test epoch is chosen by Recall@1")
    for key in ("head_only_epochs", "decay_epochs", "evaluated_epochs"):
        epochs = getattr(recipe, key)
        late = [epoch for epoch in epochs if epoch > recipe.epochs] if isinstance(epochs, list) else []
        if late:
            found.append(f"{key}: there is no epoch {late[0]}, the recipe has {recipe.epochs}")
    evaluated = recipe.evaluated_epochs
    if not evaluated or (isinstance(evaluated, int) and evaluated > recipe.epochs):
        found.append(f"evaluated_epochs: none of the {recipe.epochs} epochs is evaluated")
    if recipe.samples_per_class and recipe.batch_size % recipe.samples_per_class:
        found.append(f"samples_per_class: {recipe.samples_per_class} does not divide the batch_size")
    if recipe.smallest_crop is not None and recipe.shift:
        found.append("shift: images that are cropped at random cannot also be shifted, use 0")
    if recipe.shift >= recipe.input_size:
        found.append(f"shift: {recipe.shift} pixels move an image of {recipe.input_size} out of itself, use fewer")
    if recipe.decoded_size is not None and recipe.smallest_crop is None:
        found.append("decoded_size: without smallest_crop, images keep their size and are not shrunk, use null")
    elif recipe.decoded_size is not None and recipe.decoded_size < max(recipe.input_size, recipe.test_resize):
        found.append("decoded_size: it is less than input_size or test_resize, so images would be enlarged again")
    if recipe.test_fit != "crop" and recipe.smallest_crop is None:
        found.append("test_fit: without smallest_crop, images keep their size and are not fitted, use crop")
    if recipe.test_resize < recipe.input_size:
        found.append("test_resize: it is less than input_size, which is cropped out of the middle")
    if recipe.weights and not recipe.pretrained:
        found.append("pretrained: it is false, but weights are given: use true, or remove weights")
    if recipe.backbone.partition("/")[1] == "" and recipe.pooling == "class_token":
        found.append("pooling: only timm's networks have a class token, use another pooling")
    try:
        module_file("networks.backbones", recipe.backbone.partition("/")[0])
    except BadInputError as error:
        found.append(f"backbone: {error}")
    return found


def _settings_model(loss: type) -> type[BaseModel]:
    """A model of a loss's keyword arguments."""
    fields: dict[str, Any] = {
        argument.name: (argument.annotation, ... if argument.default is argument.empty else argument.default)
        for argument in inspect.signature(loss).parameters.values()
        if argument.kind is argument.KEYWORD_ONLY
    }
    strict = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return create_model("LossSettings", __config__=strict, **fields)


def loss_problems(file: str, settings: dict[str, Any], place: str) -> list[str]:
    """The problems of settings for a loss file of pipeline/losses. The file is imported. `place` says where the
    settings are."""
    model = _settings_model(submodule("losses", file).Loss)
    try:
        model.model_validate(settings)
    except ValidationError as error:
        return problem_lines(error, place, model)
    return []


def _loss_problems(params: Params, name: str) -> list[str]:
    """The problems of one loss's settings, and of the values that tables' rows set in them. The loss is imported."""
    if name not in params.losses:
        return [f"losses.{name}: there are no settings, add them or use one of {', '.join(params.losses)}"]
    file, settings = params.loss(name)
    wrong = loss_problems(file, settings, f"losses.{name}")
    if wrong:
        return wrong
    model = _settings_model(submodule("losses", file).Loss)
    found = []
    for table_name, table in params.tables.items():
        losses = [str(loss) for loss in table.rows.get("loss", [table.loss])]
        if any(params.loss_entry(loss, dataset) == name for loss in losses for dataset in table.datasets):
            for key in table.rows.keys() & model.model_fields.keys():
                for value in table.rows[key]:
                    try:
                        model.model_validate(settings | {key: value})
                    except ValidationError as error:
                        found += problem_lines(error, f"tables.{table_name}.rows", model)
    return found
