"""Checks of a params file beyond single values: between its entries, and of the files that the entries name."""

import difflib
import itertools
import math
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from pipeline.base.choices import arguments, chosen, chosen_file, files, key_problems, settings_model, value_problems
from pipeline.base.files import BadInputError, module_file
from pipeline.base.names import each_once
from pipeline.base.params import Params, Table
from pipeline.base.problems import moved_to, problem_lines, unknown
from pipeline.base.recipe import Recipe, is_recipe_key, replaced, room_of
from pipeline.base.search import PRIMES, Search
from pipeline.base.yaml_files import parse_yaml

SUBSETS = ("rate", "gamma")
"""The axes that choose a training set."""


def problems(params: Params, recipe: str | None, loss: str | None) -> list[str]:
    """The problems in `params`, each with its key. For the entries `recipe` and `loss` the files that they choose are
    imported, and the values of their settings are checked as well."""
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
        elif recipe:
            found += [f"recipes.{recipe}.{problem}" for problem in choice_problems(params.recipes[recipe])]
        found += _loss_problems(params, loss) if loss else []
    return list(dict.fromkeys(found))


def _unfit_losses(params: Params) -> Iterator[str]:
    """Entries of `losses` whose file does not exist, or whose keys the file does not know or lacks."""
    axes = set().union(*(table.rows for table in params.tables.values()))
    for name in params.losses:
        file, settings = params.loss(name)
        yield from (f"{name}{problem}" for problem in key_problems("loss", str(file), settings, axes))
        yield from (f"{name}.{key}: {problem}" for key, value in settings.items() if (problem := _unfit_value(value)))


def _unfit_value(value: Any) -> str:
    """Why no setting can have a value, or a part of it; empty if it can. A key has to be the same in every JSON."""
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if isinstance(value, float) and not math.isfinite(value):
        return f"a setting is a finite number, found {value}"
    return next((problem for part in parts if (problem := _unfit_value(part))), "")


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
    if not recipes - set(params.recipes):
        metrics = [(of, file) for of in params.recipes_of(table) for file, _ in of.metrics_by_name()]
        given = sorted({name for of, file in metrics if file in files("metric") for name in of.numbers(file)})
        yield from (f".columns: {name}: {unknown(name, given)}" for name in table.columns or () if name not in given)
    yield from _axis_problems(params, table, entries & set(params.losses))
    for of in sorted(recipes & set(params.recipes)):
        yield from (f".rows{problem}" for problem in _variant_problems(params.recipes[of], of, axes))
    if table.search:
        known = {of: params.recipes[of] for of in sorted(recipes & set(params.recipes))}
        problems = _search_problems(params, table, table.search, entries & set(params.losses), known)
        yield from (f".{problem}" for problem in problems)


def _search_problems(
    params: Params, table: Table, search: Search, entries: set[str], recipes: dict[str, Recipe]
) -> Iterator[str]:
    """The problems of a table's search, whose rows have some entries of losses and recipes."""
    for key, default in (("protocols", ["test"]), ("ensembles", False), ("layout", "rows")):
        if getattr(table, key) != default:
            yield f"{key}: a search has its own, remove this key"
    yield from (
        f"rows.{key}: a search chooses the training images, remove this" for key in SUBSETS if key in table.rows
    )
    yield from (f"search.losses.{name}: no row has this loss" for name in sorted(search.losses.keys() - entries))
    for entry in sorted(entries):
        spaces = search.of_loss(entry)
        if not 1 <= len(search.recipe) + len(spaces) <= len(PRIMES):
            yield f"search: {entry} has no setting to try in search.recipe or search.losses, or more than {len(PRIMES)}"
        keywords = arguments("loss", str(params.loss(entry)[0]))
        unknown_keys = [key for key in spaces if keywords is not None and key.partition(".")[0] not in keywords]
        yield from (f"search.losses.{entry}.{key}: {unknown(key, keywords or [])}" for key in unknown_keys)
        yield from (f"search.losses.{entry}.{key}: the rows set it" for key in spaces if key in table.rows)
    for key, space in search.recipe.items():
        if not is_recipe_key(key) or key in table.rows:
            yield f"search.recipe.{key}: {'the rows set it' if key in table.rows else 'recipes have no such key'}"
        else:
            for name, recipe in recipes.items():
                found = _variant_problems(recipe, name, {key: space.ends()})
                yield from (f"search.recipe{problem}" for problem in found)


def _axis_problems(params: Params, table: Table, losses: set[str]) -> Iterator[str]:
    """Axes that neither recipes nor losses have, axes that both have, and values that an axis cannot have."""
    known = {"loss", "recipe", *SUBSETS, *Recipe.model_fields}
    of_entry = {entry: arguments("loss", str(params.loss(entry)[0])) for entry in sorted(losses)}
    keywords = {entry: found for entry, found in of_entry.items() if found is not None}
    for key, values in table.rows.items():
        without = [entry for entry, found in keywords.items() if key not in found]
        nearest = difflib.get_close_matches(key, [*known, *(name for found in keywords.values() for name in found)], 1)
        if key in known and len(without) < len(keywords):
            yield f".rows.{key}: a loss also has this key and the rows would not set it, name entries of losses instead"
        elif key in Recipe.MOVED and without:
            yield f".rows.{key}: {moved_to(Recipe.MOVED[key])}"
        elif key not in known and not is_recipe_key(key) and without and (key in nearest or not nearest):
            yield f".rows.{key}: {', '.join(without)} and recipes have no such key"
        elif key not in known and not is_recipe_key(key) and without:
            yield f".rows.{key}: unknown key, did you mean {nearest[0]}?"
        if key not in ("loss", "recipe"):
            yield from (f".rows.{key}: {problem}" for value in values if (problem := _changed_on_the_way(value)))
        wrong = [value for value in values if key in SUBSETS and not _fits_subset(key, value)]
        if wrong:
            range_ = "numbers with a point, above 0.0 and up to 1.0" if key == "rate" else "whole numbers, 1 to 1000000"
            yield f".rows.{key}: found {wrong[0]!r}, give {range_}"
    if all(key in table.rows for key in SUBSETS):
        yield ".rows: rate and gamma each choose the training images, keep one of them"
    if "held_out" in table.protocols:
        yield from (
            f".rows.{key}: the epoch would be chosen on classes that these images are of, too, leave held_out out"
            for key in SUBSETS
            if key in table.rows
        )


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


def with_values(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """A recipe with other values of some keys, of which nested ones have paths. Raises `ValidationError`."""
    content: Any = recipe.model_dump()
    for key, value in values.items():
        content = replaced(content, key, value)
    return Recipe.model_validate(content)


def _variant_problems(recipe: Recipe, name: str, axes: dict[str, list[str | int | float]]) -> Iterator[str]:
    """The problems of a recipe after a table's rows have changed it. Each problem begins with a dot or a colon."""
    model = type(recipe)
    changed = {key: values for key, values in axes.items() if is_recipe_key(key)}
    for combination in itertools.product(*changed.values()):
        values = dict(zip(changed, combination, strict=True))
        try:
            variant = with_values(recipe, values)
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
    for place, name, settings in recipe.choices():
        found += [f"{place}{problem}" for problem in key_problems(room_of(place), chosen_file(name), settings)]
    for name, settings in recipe.metrics_by_name():
        found += [f"metrics.{name}{problem}" for problem in key_problems("metric", name, settings)]
    if "recall" not in dict(recipe.metrics_by_name()):
        found.append("metrics: recall is missing, the best test epoch is chosen by Recall@1")
    for key in ("head_only_epochs", "evaluated_epochs"):
        epochs = getattr(recipe, key)
        late = [epoch for epoch in epochs if epoch > recipe.epochs] if isinstance(epochs, list) else []
        if late:
            found.append(f"{key}: there is no epoch {late[0]}, the recipe has {recipe.epochs}")
    evaluated = recipe.evaluated_epochs
    if not evaluated or (isinstance(evaluated, int) and evaluated > recipe.epochs):
        found.append(f"evaluated_epochs: none of the {recipe.epochs} epochs is evaluated")
    if recipe.samples_per_class and recipe.batch_size % recipe.samples_per_class:
        found.append(f"samples_per_class: {recipe.samples_per_class} does not divide the batch_size")
    if recipe.test_fit == "crop" and recipe.test_resize is None:
        found.append("test_resize: this key is missing, add it, or use another test_fit than crop")
    elif recipe.test_fit != "crop" and recipe.test_resize is not None:
        found.append(f"test_resize: with the test_fit {recipe.test_fit} it has no effect, remove it")
    largest = max(recipe.input_size, recipe.test_resize or 0)
    if recipe.decoded_size is not None and recipe.test_fit == "stored":
        found.append("decoded_size: with the test_fit stored, images keep their size and are not shrunk, use null")
    elif recipe.decoded_size is not None and recipe.decoded_size < largest:
        found.append("decoded_size: it is less than input_size or test_resize, so images would be enlarged again")
    if recipe.test_resize is not None and recipe.test_resize < recipe.input_size:
        found.append("test_resize: it is less than input_size, which is cropped out of the middle")
    if recipe.weights and not recipe.pretrained:
        found.append("pretrained: it is false, but weights are given: use true, or remove weights")
    if recipe.backbone.partition("/")[1] == "" and recipe.pooling == "class_token":
        found.append("pooling: only timm's networks have a class token, use another pooling")
    try:
        module_file("networks.backbones", recipe.backbone.partition("/")[0])
    except BadInputError as error:
        found.append(f"backbone: {error}, or a network of the library timm as timm/{recipe.backbone}")
    return found


def problems_of(recipe: Recipe) -> list[str]:
    """All problems of one recipe. The files that it chooses are imported and tried if there is no other problem."""
    return _contradictions(recipe) or choice_problems(recipe)


def choice_problems(recipe: Recipe) -> list[str]:
    """The problems of the values in what a recipe chooses by name. The chosen files are imported and tried."""
    tried: dict[str, tuple[Any, ...]] = {
        "optimiser": ([{"params": []}],),
        "schedule": (recipe.epochs, 1),
        "augment": (recipe.input_size,),
    }
    found = []
    for place, name, settings in recipe.choices():
        found += value_problems(room_of(place), name, settings, place, tried[room_of(place)])
    for name, settings in recipe.metrics_by_name():
        found += value_problems("metric", name, settings, f"metrics.{name}")
    crops = [] if found else [hasattr(chosen("augment", of["name"]), "boxes") for of in recipe.augment]
    late = [f"augment.{place}: {recipe.augment[place]['name']} comes first" for place, of in enumerate(crops) if of]
    return found + [problem for problem in late if not problem.startswith("augment.0:")]


def _loss_problems(params: Params, name: str) -> list[str]:
    """The problems of one loss's settings, and of the values that tables' rows set in them. The loss is imported."""
    if name not in params.losses:
        return [f"losses.{name}: there are no settings, add them or use one of {', '.join(params.losses)}"]
    file, settings = params.loss(name)
    wrong = value_problems("loss", file, settings, f"losses.{name}")
    model = settings_model(chosen("loss", file))
    if wrong or model is None:
        return wrong
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
