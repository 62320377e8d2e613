"""YAML files. A text that readers of YAML would read differently is refused.

DVC reads params files as YAML 1.2. PyYAML, and most programs that people write with it, read YAML 1.1, in which `yes`
and `on` are true, `010` is eight and `1:30` is ninety. A file that passes here means the same to both, with one
exception: numbers such as `1e-05` and `-.5`, which DVC writes in this form, are text in YAML 1.1 and numbers here. A
key that appears twice in one mapping is refused, as DVC refuses it; PyYAML would keep the last one without a warning.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.base.files import BadInputError

DEPTH = 50
"""The deepest nesting of lists and mappings. The parser is recursive, and 100,000 levels crash the process."""

DIGITS = 1000
"""The most digits of a whole number. Python converts at most 4,300, and no setting has that many."""

PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
"""How text without quotes is read: kind -> its spellings, and the characters that they begin with."""


class _Loader(yaml.CSafeLoader):
    """Knows only the spellings of `PLAIN`."""


_Loader.yaml_implicit_resolvers = {}
for _kind, (_spellings, _first) in PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_spellings})$"), _first)

_AGREED = re.compile("|".join(spellings for spellings, _ in PLAIN.values()))
_NUMBER_OF_1_2 = re.compile(r"[-+]?[0-9]+|0o[0-7]+")
_yaml_1_1 = yaml.resolver.Resolver()


@dataclass
class _Open:
    """A list or mapping whose end has not been read yet: its anchor, and for a mapping the line of each key so far."""

    anchor: str | None
    keys: dict[str, int] | None
    key_is_next: bool = True


def _scalar_problem(event: yaml.ScalarEvent) -> str:
    """The problem of a single text, number or word; empty if there is none."""
    value = event.value
    if event.tag is not None:
        return f"{value!r} has the tag {event.tag}: leave it out"
    if not event.implicit[0]:
        return ""
    if len(value) > DIGITS and _NUMBER_OF_1_2.fullmatch(value):
        return f"a number of {len(value):,} digits is longer than a setting can be"
    kind = _yaml_1_1.resolve(yaml.ScalarNode, value, (True, False)).rpartition(":")[2]
    if _AGREED.fullmatch(value) or (kind == "str" and not _NUMBER_OF_1_2.fullmatch(value)):
        return ""
    fix = "write true or false" if kind == "bool" else "write plain decimal digits"
    return f"{value}: readers of YAML differ in how they read it, {fix}, or quote it if it is a text"


def _problems(text: str) -> Iterator[str]:
    """The problems of a YAML text other than its grammar, each with its line. Raises `yaml.YAMLError` for bad
    grammar."""
    open_now: list[_Open] = []
    for event in yaml.parse(text, yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            open_now.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        line = event.start_mark.line + 1 if event.start_mark else 0
        around = open_now[-1] if open_now else _Open(None, None)
        keys = around.keys if around.key_is_next else None
        around.key_is_next = not around.key_is_next
        if isinstance(event, yaml.ScalarEvent):
            if keys is not None and event.value in keys:
                yield f"line {line}: the key {event.value} is in line {keys[event.value]} already, keep one of them"
            if keys is not None:
                keys[event.value] = line
                if event.implicit[0] and event.value != "<<" and _AGREED.fullmatch(event.value):
                    yield f"line {line}: the key {event.value or 'that is empty'} is no text, quote it"
            if problem := _scalar_problem(event):
                yield f"line {line}: {problem}"
            continue
        if keys is not None:
            yield f"line {line}: a key has to be a text"
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in [other.anchor for other in open_now]:
                yield f"line {line}: *{event.anchor} is inside of what it refers to"
        elif isinstance(event, yaml.CollectionStartEvent):
            if event.tag is not None:
                yield f"line {line}: the tag {event.tag} is not known here, leave it out"
            open_now.append(_Open(event.anchor, {} if isinstance(event, yaml.MappingStartEvent) else None))
            if len(open_now) > DEPTH:
                yield f"line {line}: lists and mappings are nested more than {DEPTH} deep"
                return


def parse_yaml(text: str, source: str) -> Any:
    """The content of a YAML text. Raises `BadInputError`, whose message begins with `source`, for text that is not YAML
    and for values that readers of YAML would read differently."""
    try:
        problems = list(_problems(text))
        if not problems:
            return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise BadInputError(f"{source} is not YAML: {where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise BadInputError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    raise BadInputError("\n  ".join([f"{source}:", *problems]))


def read_yaml(path: Path) -> Any:
    """The content of a YAML file in UTF-8. Raises `BadInputError` if it is missing, cannot be read or is not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInputError(f"{path} is missing") from None
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from None
    return parse_yaml(text, str(path))
