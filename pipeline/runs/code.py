"""What a definition computes, as a normal form that does not depend on how it is written.

Everything that cannot change a finished run's bytes is left out: docstrings, comments, layout, annotations, messages of
errors, prints. `runs/reach.py` makes one hash of the definitions that a run reaches.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
LOADERS = ("submodule", "chosen")
"""The functions by which the code loads a file that the settings choose: `submodule(room, name)` and `chosen(what,
name)`."""

NO_CONTENT = ("lineno", "col_offset", "end_lineno", "end_col_offset", "type_comment", "type_params", "kind", "ctx")
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

Plain = Any
"""Nested lists, the same in every version of Python that this package runs on."""


def idle(node: Any) -> bool:
    """Whether a statement computes nothing: a docstring, another string on its own, a print, an import of this package,
    or what only type checkers or the command line run."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'")
    if isinstance(node, ast.Import | ast.ImportFrom):
        return all(name.split(".")[0] == "pipeline" for name in imported(node).values())
    if not isinstance(node, ast.Expr):
        return False
    value = node.value
    printed = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print"
    return printed or (isinstance(value, ast.Constant) and isinstance(value.value, str))


def imported(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """The names that an import binds: name -> dotted name of what it means."""
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    firsts = {alias.name.split(".")[0]: alias.name.split(".")[0] for alias in node.names if not alias.asname}
    return firsts | {alias.asname: alias.name for alias in node.names if alias.asname}


def loaded(node: ast.Import | ast.ImportFrom) -> set[str]:
    """The dotted names of modules, or of what is in them, that an import loads."""
    place = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    return {f"{place}{alias.name}" for alias in node.names}


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements of a body, also those inside of others."""
    for statement in body:
        yield statement
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from statements(getattr(statement, field, ()))  # type: ignore[arg-type]  # handlers have bodies, too


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes inside of a node: `ast.iter_child_nodes` without the contexts of names, in half of the time."""
    for field in node._fields:
        value = getattr(node, field, None)
        if isinstance(value, list):
            yield from (child for child in value if isinstance(child, ast.AST))
        elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
            yield value


def _bound(scope: ast.AST) -> set[str]:
    """The names that belong to a function or a comprehension itself: parameters, and what its body assigns. A name that
    is missed here only makes a definition reach more."""
    found: set[str] = set()
    outer: set[str] = set()
    ahead: list[ast.AST] = list(_children(scope))
    while ahead:
        node = ahead.pop()
        if isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Global):
            outer.update(node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        if not isinstance(node, SCOPES):
            ahead += _children(node)
    return found - outer


class Reader:
    """Reads statements: `plain` gives their normal form and collects what they use."""

    def __init__(self) -> None:
        self.names: set[tuple[str, ...]] = set()
        """The dotted names that are used and not bound within the statements: ("checkpoint", "load")."""
        self.loads: set[tuple[str, str | None, str | None]] = set()
        """The calls that look like loads of a file: the function's name, its first argument, and the name that is used
        of what it gives."""
        self.imports: set[str] = set()
        """The modules and names of this package that are imported within functions."""

    def plain(self, node: Any, bound: frozenset[str] = frozenset(), place: str = "module") -> Plain:
        """The normal form of a node. `bound` are the names of the functions around it; `place` is "module", "class" or
        "function"."""
        if isinstance(node, list):
            for child in node:
                if isinstance(child, ast.Import | ast.ImportFrom):
                    self.imports.update(loaded(child))
            return [self.plain(child, bound, place) for child in node if not idle(child)]
        if isinstance(node, ast.Constant):
            return ["Constant", repr(node.value)]
        if isinstance(node, ast.Raise):
            # Code may depend on the kind of error, because it can catch it. The message is only for people.
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            return ["Raise", self.plain(error, bound, place)]
        if isinstance(node, ast.Assert):
            return ["Assert", self.plain(node.test, bound, place)]
        if isinstance(node, ast.arg):
            return ["arg", node.arg]
        if isinstance(node, ast.AnnAssign) and place != "class":
            value = self.plain(node.value, bound, place) if node.value else []
            return ["Assign", self.plain(node.target, bound, place), value]
        if isinstance(node, ast.Name | ast.Attribute | ast.Call) and (form := self.dotted(node, bound, place)):
            return form
        if not isinstance(node, ast.AST):
            return node
        fields = [(name, value) for name, value in ast.iter_fields(node) if name not in NO_CONTENT]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            fields = [(name, value) for name, value in fields if name != "returns"]
        inner, within = bound, place
        if isinstance(node, SCOPES):
            inner, within = bound | _bound(node), "function"
        elif isinstance(node, ast.ClassDef):
            within = "class"
        return [
            type(node).__name__,
            *([name, self.plain(value, inner, within)] for name, value in fields if value not in (None, [])),
        ]

    def dotted(self, node: ast.Name | ast.Attribute | ast.Call, bound: frozenset[str], place: str) -> Plain | None:
        """The normal form of a dotted name, or of the choice of a file by the settings; None for anything else."""
        names: list[str] = []
        inner: ast.expr = node
        while isinstance(inner, ast.Attribute):
            names.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            if inner.id not in bound:
                self.names.add((inner.id, *names))
            return ["Dotted", ".".join([inner.id, *names])]
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id in {*LOADERS} - bound:
            first = inner.args[0].value if inner.args and isinstance(inner.args[0], ast.Constant) else None
            used = names[0] if names else None
            self.loads.add((inner.func.id, first if isinstance(first, str) else None, used))
            arguments = [self.plain(inner.args, bound, place), self.plain(inner.keywords, bound, place)]
            return ["Loaded", inner.func.id, *arguments, ".".join(names)]
        return None
