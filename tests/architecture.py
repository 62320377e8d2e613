"""What imports what in pipeline/, and its drawing: `python -m tests.architecture` writes docs/architecture.svg."""

import ast
import functools
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pipeline"
WIDTH, HEIGHT, GAP = 176, 62, 44
ROOMS = {
    "base": (1.5, "files, settings, randomness"),
    "data": (2.5, "archives, packed images"),
    "datasets": (3, "one file a dataset"),
    "losses": (0, "one file a loss"),
    "networks": (2, "backbones, heads, weights"),
    "metrics": (1, "retrieval, clusters"),
    "runs": (2, "key, store, grid"),
    "training": (1, "batches, step, checkpoint"),
    "tables": (3, "rows, claims, formats"),
    "statistics": (3, "spread, verdicts, power"),
    "work": (1, "train, evaluate"),
    "reports": (3, "pages, galleries"),
    "bundles": (2, "handed on, checked"),
    "engines": (1, "local, SLURM, Ray"),
    "health": (1, "what doctor reports"),
}
"""Room -> its column in the drawing, and what is in it."""
BY_NAME = ("training", "losses")
"""A room that imports modules of another by the names that settings give."""


def module(path: Path) -> str:
    """The dotted name of a file of this package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def file_imports() -> dict[str, set[str]]:
    """File -> the files of this package that it imports, also within a function, or for type checkers only. All are
    dotted names. Folders count if names are imported from their `__init__.py`."""
    files = {module(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    found: dict[str, set[str]] = {}
    for own, path in files.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                inside = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name in files else node.module for name in inside.values()}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        found[own] = names & {*files} - {own}
    return found


def imports() -> dict[str, set[str]]:
    """Room or command -> the rooms and commands that any of its files imports, also within a function."""
    found: dict[str, set[str]] = {}
    for own, others in file_imports().items():
        if own not in ("pipeline", "pipeline.__main__"):
            room = own.split(".")[1]
            found.setdefault(room, set()).update({other.split(".")[1] for other in others - {"pipeline"}} - {room})
    return found


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """Room -> its row in the drawing, from the top: below all that import it. A circle is a `RecursionError`."""

    def level(room: str) -> int:
        return 1 + max((level(other) for other, found in graph.items() if room in found), default=-1)

    return {room: level(room) for room in graph}


def drawing() -> str:
    """The rooms and what they import of one another, as SVG; an import that follows from others is not drawn."""
    graph = {room: found & {*ROOMS} for room, found in imports().items() if room in ROOMS}
    graph[BY_NAME[0]].add(BY_NAME[1])
    level = levels(graph)

    def reached(room: str) -> set[str]:
        return {room}.union(*map(reached, graph[room]))

    width, height = 4 * (WIDTH + GAP) + GAP, (max(level.values()) + 1) * (HEIGHT + GAP) + GAP
    at = {
        room: (GAP + column * (WIDTH + GAP), GAP + level[room] * (HEIGHT + GAP)) for room, (column, _) in ROOMS.items()
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for room, (x, y) in at.items():
        for other in sorted(graph[room]):
            if any(other in reached(third) for third in graph[room] - {other}):
                continue
            to = at[other]
            dashes = " stroke-dasharray='5 4'" if (room, other) == BY_NAME else ""
            lines.append(
                f'<line x1="{x + WIDTH / 2:.0f}" y1="{y + HEIGHT:.0f}" x2="{to[0] + WIDTH / 2:.0f}" y2="{to[1]:.0f}" '
                f'stroke="#555" marker-end="url(#tip)"{dashes}/>'
            )
    for room, (x, y) in at.items():
        lines += [
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#e8f0fa" stroke="#345"/>',
            f'<text x="{x + WIDTH / 2:.0f}" y="{y + 26:.0f}" text-anchor="middle" font-size="16">{escape(room)}</text>',
            f'<text x="{x + WIDTH / 2:.0f}" y="{y + 46:.0f}" text-anchor="middle" font-size="11">'
            f"{escape(ROOMS[room][1])}</text>",
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    (ROOT / "docs/architecture.svg").write_text(drawing(), encoding="utf-8")
