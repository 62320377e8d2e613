"""The code that a run reaches, definition by definition, and one hash of it.

It begins at entry points, such as the class that trains, and follows every name that a definition uses: functions,
classes, constants, and the files that the settings choose (`submodule(room, name)`, `chosen(what, name)`). Statements
at a module's top level that define nothing, such as `torch.backends.x = True`, run with every import of the module, so
they are covered with it. What cannot be followed counts as its whole file or the whole package, never as nothing.

A definition counts by its normal form (`runs/code.py`) and by what its names mean. The file that it is in does not
count, unless two of the run's definitions have the same name, or the definition reads its own place. So a definition
that is moved to another file changes no key.
"""

import ast
import functools
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.base.choices import ROOMS
from pipeline.base.files import BadInputError
from pipeline.runs.code import PACKAGE, Reader, idle, imported, loaded, statements

NOT_COMPUTING = {
    "pipeline.import": "sets the environment, whose values that change results are entry points",
    "pipeline.base.files.remove": "removes files",
    "pipeline.base.files.sha256": "compares bytes with hashes that are in the key",
    "pipeline.base.files.whole": "writes what it is given, whole",
    "pipeline.base.files.ended_after": "words of messages",
    "pipeline.base.names": "refuses names, or lets them pass as they are",
    "pipeline.base.provenance": "describes the machine",
    "pipeline.base.yaml_files.import": "reads settings: their values are in the key",
    "pipeline.data.checksums": "what it pins is in the key: manifests and weights, by their hashes",
    "pipeline.metrics.limits": "refuses what cannot be evaluated",
    "pipeline.networks.published.FILES": "addresses of weights: the hash of a run's own file is in its key",
    "pipeline.networks.published.file_name": "names of files: their hashes are in the key",
    "pipeline.networks.published.import": "makes FILES",
    "pipeline.runs.store": "keeps what was made",
}
"""Modules, folders and definitions that no hash covers, and why."""

SUBMODULE, CHOSEN = "pipeline.base.files.submodule", "pipeline.base.choices.chosen"
DYNAMIC = {"eval", "exec", "globals", "__import__", "importlib.import_module", SUBMODULE, CHOSEN}
"""What can use any definition of the package, if it is used in a way that `Reader` does not read."""

PURE = (
    *("contextlib", "dataclasses", "functools", "pathlib", "re", "typing", "collections", "math", "operator"),
    *("annotated_types", "pydantic", "numpy.float32", "numpy.dtype", "torch.device"),
)
"""Functions that change nothing outside of what they return. A constant that calls another function counts as a
statement that runs with the import."""

WHOLE, IMPORT = "*", ""


class Target(NamedTuple):
    """A definition of a module, by its name; `WHOLE`: the whole module; `IMPORT`: what runs when it is imported."""

    module: str
    name: str

    @property
    def place(self) -> str:
        """The dotted name."""
        return f"{self.module}.{self.name or 'import'}"

    @property
    def computes(self) -> bool:
        """Whether no entry of `NOT_COMPUTING` leaves it out."""
        return _computes(self.place)


@functools.cache
def _computes(place: str) -> bool:
    parts = place.split(".")
    return not any(".".join(parts[:length]) in NOT_COMPUTING for length in range(1, len(parts) + 1))


@dataclass(frozen=True, eq=False)
class Module:
    """What a file defines, and what its import runs."""

    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, set[str]]
    """Name -> the dotted names that imports anywhere in the file give it."""
    loaded: set[str]
    """The dotted names that are imported whenever the module is."""
    loose: list[ast.stmt]
    """The statements at the top level that are no definitions."""


@functools.cache
def file_of(name: str) -> Path | None:
    """The file of the module of this package with a dotted name; None for other names."""
    first, *rest = name.split(".")
    if first != "pipeline" or not all(map(str.isidentifier, rest)):
        return None
    path = PACKAGE.joinpath(*rest)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


@functools.cache
def _module(name: str) -> Module:
    file = file_of(name)
    assert file is not None
    return _read(file.read_text(encoding="utf-8"), file)


@functools.cache
def _read(text: str, file: Path) -> Module:
    tree = ast.parse(text)
    found = Module({}, {}, set(), [])
    for node in statements(tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            if isinstance(node, ast.ImportFrom) and (node.level or node.names[0].name == "*"):
                raise BadInputError(f"{file}, line {node.lineno}: write from pipeline.<room>.<file> import <name>")
            for alias, dotted in imported(node).items():
                found.imports.setdefault(alias, set()).add(dotted)
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            found.loaded.update(loaded(statement))
        elif names := _defined(statement):
            for defined in names:
                found.definitions.setdefault(defined, []).append(statement)
            if _acts(statement, found):
                found.loose.append(statement)
        elif not idle(statement):
            found.loose.append(statement)
    return found


def _defined(statement: ast.stmt) -> list[str]:
    """The names that a statement at the top level defines; none if it does anything else."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return []
    targets: list[ast.expr] = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    while any(isinstance(target, ast.Tuple) for target in targets):
        targets = [inner for of in targets for inner in (of.elts if isinstance(of, ast.Tuple) else [of])]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return names if len(names) == len(targets) else []


def _acts(statement: ast.stmt, module: Module) -> bool:
    """Whether an assignment may do more than define its names: it calls a function that is imported and not known to be
    `PURE`."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return False
    for function in [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]:
        names = ast.unparse(function).split(".")
        meanings = [".".join([dotted, *names[1:]]) for dotted in module.imports.get(names[0], ())]
        if not all(meaning.startswith(PURE) for meaning in meanings):
            return True
    return False


@functools.cache
def locate(dotted: str) -> frozenset[Target]:
    """What a dotted name of this package means."""
    first, *rest = dotted.split(".")
    module = first
    while rest:
        known = _module(module)
        if rest[0] in known.definitions:
            return frozenset([Target(module, rest[0])])
        if file_of(f"{module}.{rest[0]}"):
            module = f"{module}.{rest.pop(0)}"
        elif rest[0] in known.imports:
            own = [name for name in known.imports[rest[0]] if name.startswith("pipeline.")]
            return frozenset().union(*(locate(".".join([name, *rest[1:]])) for name in own))
        else:
            break
    return frozenset([Target(module, WHOLE)])


Choice = tuple[str | None, str | None]
"""The room of a file that the settings choose, and the name of what is used of it. None means any."""


@dataclass(frozen=True, eq=False)
class Definition:
    """A definition's normal form, and what it uses."""

    form: str
    """SHA-256 of the normal form, and of the meanings of names of other libraries."""
    uses: dict[str, frozenset[Target]]
    """Dotted name, as it is written -> what it means in this package."""
    chosen: frozenset[Choice]
    """What it uses of files that the settings choose."""
    runs: frozenset[Target]
    """What its imports run."""
    placed: bool
    """Whether it reads its own place in the package."""


@functools.cache
def _definition(target: Target) -> Definition:
    module = _module(target.module)
    reader = Reader()
    statements = module.loose if target.name == IMPORT else module.definitions[target.name]
    form = reader.plain(statements)
    uses, others, chosen = dict[str, frozenset[Target]](), [], set[Choice]()
    for loader, first, used in reader.loads:
        if module.imports.get(loader) == {SUBMODULE}:
            chosen.add((first, used))
        elif module.imports.get(loader) == {CHOSEN}:
            room = ROOMS.get(first or "")
            chosen.add((room.package, room.has) if room else (None, None))
        else:
            reader.names.add((loader,))
    for names in sorted(reader.names):
        spelled = ".".join(names)
        meanings = {f"{target.module}.{spelled}"} if names[0] in module.definitions else set()
        meanings |= {".".join([dotted, *names[1:]]) for dotted in module.imports.get(names[0], ())}
        if DYNAMIC & ({spelled} | meanings):
            chosen.add((None, None))
        own = [meaning for meaning in meanings if meaning.split(".")[0] == "pipeline"]
        others += [f"{spelled}={meaning}" for meaning in sorted(meanings.difference(own))]
        if own:
            uses[spelled] = frozenset().union(*map(locate, own))
    loaded = reader.imports | (module.loaded if target.name == IMPORT else set())
    runs = {Target(place, IMPORT) for name in loaded for place in _imported_modules(name)}
    placed = any(names[0] in ("__file__", "__name__", "__path__") for names in reader.names)
    hashed = hashlib.sha256(repr([form, others]).encode()).hexdigest()
    return Definition(hashed, uses, frozenset(chosen), frozenset(runs), placed)


@functools.cache
def _imported_modules(dotted: str) -> list[str]:
    """The modules of this package that the import of a dotted name runs: its file, and those of the folders around."""
    names = dotted.split(".")
    return [name for length in range(1, len(names) + 1) if file_of(name := ".".join(names[:length]))]


def _all(module: str) -> set[Target]:
    return {Target(module, name) for name in _module(module).definitions}


def _room(room: str | None) -> list[str]:
    """The modules of a room, or of the whole package."""
    folder = PACKAGE.joinpath(*room.split(".")) if room else PACKAGE
    files = folder.glob("*.py") if room else folder.rglob("*.py")
    places = [file.relative_to(PACKAGE).with_suffix("").parts for file in sorted(files)]
    return [".".join(["pipeline", *place]) for place in places if place[-1] != "__init__"]


def _chosen(room: str | None, name: str | None, choices: dict[str, tuple[str, ...]]) -> set[Target]:
    """What is meant by the definition `name` of the files that the settings choose in a room: all of its files if
    `choices` has nothing about the room."""
    modules = [f"pipeline.{room}.{file}" for file in choices[room]] if room in choices else _room(room)
    if name is None:
        return {Target(module, WHOLE) for module in modules}
    return set().union(*(locate(f"{module}.{name}") for module in modules))


Choices = tuple[tuple[str, tuple[str, ...]], ...]
"""Room -> the files in it that the settings choose, as pairs."""


@functools.cache
def reach(entries: tuple[str, ...], choices: Choices) -> dict[Target, dict[str, frozenset[Target]]]:
    """The definitions that the entry points, given by their dotted names, reach: definition -> the meanings of its
    names."""
    found: dict[Target, dict[str, frozenset[Target]]] = {}
    ahead = [target for entry in entries for target in locate(entry)]
    while ahead:
        target = ahead.pop()
        if target in found or not target.computes:
            continue
        ahead += [Target(module, IMPORT) for module in _imported_modules(target.module)]
        if target.name == WHOLE:
            ahead += _all(target.module)
            continue
        definition = _definition(target)
        uses = dict(definition.uses)
        for room, name in definition.chosen:
            uses[f"{room} {name}"] = frozenset(_chosen(room, name, dict(choices)))
        found[target] = uses
        ahead += [used for targets in uses.values() for used in targets]
        ahead += definition.runs
    return {target: found[target] for target in sorted(found) if target.name != IMPORT or _module(target.module).loose}


def labels(places: list[str]) -> dict[str, str]:
    """The names by which definitions count: place -> the definition's own name if it is the only one of that name,
    otherwise its place."""
    counts = Counter(place.rpartition(".")[2] for place in places)
    return {place: name if counts[name := place.rpartition(".")[2]] == 1 else place for place in places}


@functools.cache
def code(entries: tuple[str, ...], choices: Choices) -> dict[str, str]:
    """The code that entry points reach: the place of each definition, such as `pipeline.losses.unit` -> the first 16
    digits of a SHA-256 of what it computes. What an import runs is called `import`."""
    found = reach(entries, choices)
    names = labels([target.place for target in found])
    lines = {}
    for target, uses in found.items():
        definition = _definition(target)
        meanings = [
            (name, sorted(names.get(used.place, used.place) for used in targets if used.computes))
            for name, targets in sorted(uses.items())
        ]
        text = repr([definition.form, meanings, target.place if definition.placed else ""])
        lines[target.place] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return lines


def code_hash(lines: dict[str, str]) -> str:
    """One SHA-256 of the lines that `code` gives."""
    names = labels([*lines])
    text = "".join(sorted(f"{names[place]} {digits}\n" for place, digits in lines.items()))
    return hashlib.sha256(text.encode()).hexdigest()
