"""`python -m pipeline`: the commands, a line each."""

import ast
import textwrap
from pathlib import Path


def commands() -> dict[str, str]:
    """The first sentence of each command's description, by the command's name."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        found[path.stem] = " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
    return found


def main() -> None:
    """Command line."""
    found = commands()
    width = max(map(len, found)) + 2
    for name, sentence in found.items():
        print(textwrap.fill(sentence, 100, initial_indent=name.ljust(width), subsequent_indent=" " * width))
    print("\npython -m pipeline.NAME --help says more. Where to begin: README.md")


if __name__ == "__main__":
    main()
