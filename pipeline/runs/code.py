"""One hash of the code that computes. It depends on what the code does, not on how it is written.

A hash covers the files of this package that a file imports, and the files that these import. Everything that cannot
change a finished run's bytes is left out: docstrings, comments, layout, annotations of functions, messages of errors,
prints.
"""

import ast
import functools
import hashlib
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]

NOT_COMPUTING = {
    "base/config.py": "settings: their values are in the key",
    "base/checks.py": "refuses settings, or lets them pass as they are",
    "base/names.py": "refuses names, or lets them pass as they are",
    "base/yaml_files.py": "reads settings: their values are in the key",
    "metrics/limits.py": "refuses what cannot be evaluated",
    "base/files.py": "writes what it is given, whole",
    "base/provenance.py": "describes the machine",
    "data/checksums.py": "what it pins is in the key: manifests and weights, by their hashes",
    "data/fetch.py": "brings files whose hashes are in the key",
    "networks/published.py": "addresses of weights: the hash of a run's own file is in its key",
    "networks/outline.py": "refuses networks, or lets them pass as they are",
    "runs/": "decides what is run, not how",
}
"""Files and folders that no hash covers, and why."""

NO_CONTENT = ("lineno", "col_offset", "end_lineno", "end_col_offset", "type_comment", "type_params", "kind", "ctx")


def _plain(node: Any) -> Any:
    """A syntax tree as nested lists that are the same in every version of Python that this package runs on."""
    if isinstance(node, list):
        return [_plain(child) for child in node if not _idle(child)]
    if isinstance(node, ast.Constant):
        return ["Constant", repr(node.value)]
    if isinstance(node, ast.Raise):
        # Code may depend on the kind of error, because it can catch it. The message is only for people.
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ["Raise", _plain(error)]
    if isinstance(node, ast.arg):
        return ["arg", node.arg]
    if not isinstance(node, ast.AST):
        return node
    fields = [(name, value) for name, value in ast.iter_fields(node) if name not in NO_CONTENT]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        fields = [(name, value) for name, value in fields if name != "returns"]
    return [type(node).__name__, *([name, _plain(value)] for name, value in fields if value not in (None, []))]


def _idle(node: Any) -> bool:
    """Whether a statement computes nothing: a docstring, another string on its own, or a print."""
    if not isinstance(node, ast.Expr):
        return False
    value = node.value
    printed = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print"
    return printed or (isinstance(value, ast.Constant) and isinstance(value.value, str))


def tree_hash(source: str) -> str:
    """SHA-256 of the parts of a module's source text that compute."""
    return hashlib.sha256(repr(_plain(ast.parse(source))).encode()).hexdigest()


def _file(name: str) -> Path | None:
    """The file of the module of this package with a dotted name; None for other names."""
    first, *rest = name.split(".")
    if first != "pipeline":
        return None
    path = PACKAGE.joinpath(*rest)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _computes(file: Path) -> bool:
    place = file.relative_to(PACKAGE).as_posix()
    return not any(place == name or (name.endswith("/") and place.startswith(name)) for name in NOT_COMPUTING)


@functools.cache
def _read(file: Path) -> tuple[str, frozenset[Path]]:
    """A file's tree hash, and the files of this package that it imports, also inside of functions."""
    source = file.read_text(encoding="utf-8")
    imported: set[Path] = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        imported |= {path for name in names if (path := _file(name)) is not None}
    return tree_hash(source), frozenset(imported)


def files_of(*modules: str) -> list[Path]:
    """The files that compute: those of the modules, given by their dotted names, and all files that they import,
    directly or through other files."""
    found: set[Path] = set()
    ahead = [path for name in modules if (path := _file(name)) is not None]
    while ahead:
        file = ahead.pop()
        if file not in found and _computes(file):
            found.add(file)
            ahead += _read(file)[1]
    return sorted(found)


def code_hash(*modules: str) -> str:
    """One SHA-256 over `files_of` the modules: over each file's place in the package and the hash of its tree."""
    lines = [f"{_read(file)[0]}  {file.relative_to(PACKAGE).as_posix()}\n" for file in files_of(*modules)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@functools.cache
def _loss_arguments(loss: str) -> tuple[dict[str, Any], frozenset[str]]:
    """The defaults of the settings of a file of pipeline/losses, and the names of the settings that are floats. They
    are read from the file's text. Importing the file would import torch, which takes longer than the rest of computing
    a key."""
    tree = ast.parse((PACKAGE / "losses" / f"{loss}.py").read_text(encoding="utf-8"))
    for kind in tree.body:
        if isinstance(kind, ast.ClassDef) and kind.name == "Loss":
            for function in kind.body:
                if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                    pairs = list(zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True))
                    defaults = {name.arg: ast.literal_eval(value) for name, value in pairs if value is not None}
                    return defaults, frozenset(name.arg for name, _ in pairs if _is_float(name.annotation))
    return {}, frozenset()


def _is_float(annotation: ast.expr | None) -> bool:
    """Whether an annotation is float, or Annotated[float, ...]."""
    text = ast.unparse(annotation) if annotation else ""
    return text == "float" or text.startswith("Annotated[float,")


def loss_settings(loss: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a file of pipeline/losses, with its defaults. For a float setting 12 becomes 12.0, so that both
    mean the same run."""
    defaults, floats = _loss_arguments(loss)
    return {
        name: float(value) if name in floats and type(value) is int else value
        for name, value in (defaults | settings).items()
    }
