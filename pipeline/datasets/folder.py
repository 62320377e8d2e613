"""A folder of your own images: `data/raw/<name>/train/<class>/…` and `data/raw/<name>/test/<class>/…`. The folder's
name is the dataset's name. It is `folder`, or any name that no file of pipeline/datasets has.

`query` and `gallery` may take the place of `test`. A class is the path of its folder under `train` or `test`, so
classes may be in groups: `train/Greek/alpha/1.png` belongs to the class `Greek/alpha`. `%2F` in a folder's name means a
slash, as `pipeline.export` writes it, unless this would make one class out of two folders. `groups.csv` beside `train`
may give the groups of the images, such as cameras: a line `image,group` first, then one line for each image, such as
`test/Greek/alpha/1.png,scan`. Groups are read only by the metric other_groups. `data/raw/<name>` and everything in it
may be symbolic links. What file managers leave behind (`RUBBISH`) is left out and counted; other names that begin with
a dot are left out and named. There are no published counts, so none are checked. A class in both parts is refused.
"""

import stat
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from pipeline import datasets
from pipeline.base.files import BadInputError
from pipeline.base.lists import listed
from pipeline.data.decoding import BYTE_LIMIT
from pipeline.data.index import Entry, read_rows
from pipeline.data.packed import SourceImage, shown
from pipeline.datasets import Expected

EXPECTED: dict[str, Expected] = {}
GROUPS = "groups.csv"

RUBBISH = ("Thumbs.db", "ehthumbs.db", "desktop.ini", ".DS_Store", "@eaDir", "#recycle", "__MACOSX")
"""Files and folders that file managers and archives leave behind; also every name that begins with `._`."""


def _parts(raw: Path) -> tuple[str, ...]:
    """The names of the parts that `raw` has: train and test, or train, query and gallery. Raises `BadInputError` if it
    has other parts."""
    present = {part for part in ("train", "test", "query", "gallery") if (raw / part).is_dir()}
    for parts in (("train", "test"), ("train", "query", "gallery")):
        if present == set(parts):
            return parts
    found = f", but it has {', '.join(sorted(present))}" if present else ""
    known = ", ".join(
        sorted(
            path.stem
            for path in Path(__file__).parent.glob("[!_]*.py")
            if path.stem not in (datasets.OWN, *datasets.OTHERS)
        )
    )
    whose = "" if raw.name == datasets.OWN else f"{raw.name} is none of {known}, so it is a dataset of your own: "
    raise BadInputError(
        f"{whose}{raw} should hold your images as {raw}/train/<class>/<image> and {raw}/test/<class>/<image> "
        f"(or query and gallery in place of test){found}: put them there, or make {raw} a symbolic link to them"
    )


def download(raw: Path) -> None:
    """Check that the folders are there; nothing is fetched."""
    _parts(raw)


def is_rubbish(name: str) -> bool:
    """Whether a file or folder of this name was left behind by a file manager or an archive."""
    return name in RUBBISH or name.startswith("._")


def visible(folder: Path, ignored: list[Path]) -> list[Path]:
    """What a folder holds, sorted. Rubbish and what begins with a dot is added to `ignored` instead."""
    paths = sorted(folder.iterdir())
    ignored += [path for path in paths if is_rubbish(path.name) or path.name.startswith(".")]
    return [path for path in paths if not is_rubbish(path.name) and not path.name.startswith(".")]


def say_ignored(raw: Path, ignored: list[Path]) -> None:
    """Print on stderr what was left out: a count of rubbish, and the names of the others."""
    rubbish = [path.name for path in ignored if is_rubbish(path.name)]
    if rubbish:
        names = ", ".join(sorted({name if name in RUBBISH else "._*" for name in rubbish}))
        print(f"{raw}: {len(rubbish):,} files and folders of file managers are left out ({names})", file=sys.stderr)
    hidden = [shown(path.relative_to(raw).as_posix()) for path in ignored if not is_rubbish(path.name)]
    if hidden:
        named = listed(hidden, _list(raw, "hidden"))
        print(f"warning: {raw}: names that begin with a dot are left out:{named}", file=sys.stderr)


def classes_below(top: Path, problems: list[str], ignored: list[Path]) -> Iterator[tuple[str, list[Path]]]:
    """The path under `top` and the files of each class: every folder that holds files is a class. Problems of the
    folders are added to `problems`, and what is left out to `ignored`."""
    # Each folder, with the real paths of the folders that lead to it.
    ahead: list[tuple[Path, tuple[Path, ...]]] = [(top, (top.parent.resolve(),))]
    while ahead:
        folder, above = ahead.pop()
        try:
            paths = visible(folder, ignored)
            real = folder.resolve()
        except OSError as error:
            problems.append(f"{shown(str(folder))} cannot be read: {error.strerror}")
            continue
        if any(place.is_relative_to(real) for place in above):
            problems.append(f"{shown(str(folder))} is a link to a folder that it lies in: remove the link")
            continue
        folders = [path for path in paths if path.is_dir()]
        files = [path for path in paths if not path.is_dir()]
        ahead += [(path, (*above, real)) for path in reversed(folders)]
        if files and (folders or folder == top):
            problems += [f"{shown(str(file))} {_astray(file)}" for file in files]
        elif files:
            yield folder.relative_to(top).as_posix(), files
        elif folder == top and not folders:
            problems.append(f"{folder} holds no class: make a folder in it for each class")
        elif not folders:
            problems.append(f"{shown(str(folder))} is a class without an image: remove the folder or fill it")


def _astray(file: Path) -> str:
    """The problem of a file that is in no class."""
    if file.exists():
        return "lies beside folders of classes: put it into one of them"
    return "is a link to nothing: remove or correct it"


def _class_names(paths: set[str]) -> dict[str, str]:
    """The path of each class's folder -> the name of the class. Names are unquoted (`%2F` becomes a slash) if they then
    still differ."""
    names = {path: unquote(path) for path in sorted(paths)}
    return names if len(set(names.values())) == len(names) else {path: path for path in names}


def _alike(names: Iterable[str]) -> Iterator[str]:
    """Groups of class names that differ only by case, by Unicode's normal form, or by blanks and characters that cannot
    be seen."""
    groups = defaultdict(list)
    for name in sorted(names):
        seen = "".join(character for character in name if unicodedata.category(character) != "Cf")
        plain = unicodedata.normalize("NFC", unicodedata.normalize("NFC", seen).casefold())
        groups["/".join(" ".join(part.split()) for part in plain.split("/"))].append(ascii(name))
    yield from (" and ".join(group) for group in groups.values() if len(group) > 1)


def _list(raw: Path, kind: str) -> Path:
    """The file for a list of something in `raw` that is too long for a message."""
    return Path("data/packed", f"{raw.name}.{kind}.txt")


def read(path: Path) -> tuple[bytes, str]:
    """The bytes of a file, or why they cannot be read."""
    try:
        status = path.stat()
        # Opening a FIFO would wait for ever for a writer.
        if not stat.S_ISREG(status.st_mode):
            return b"", "not a file but a pipe, a socket or a device"
        if status.st_size > BYTE_LIMIT:
            return b"", f"it has {status.st_size:,} bytes, but the limit is {BYTE_LIMIT:,}"
        return path.read_bytes(), ""
    except OSError as error:
        return b"", "a link to nothing" if isinstance(error, FileNotFoundError) else str(error.strerror)


def _groups(raw: Path) -> dict[str, str]:
    """The group of each image, as groups.csv says; empty if there is no such file. Raises `BadInputError` for a line
    that cannot be used."""
    path, found = raw / GROUPS, dict[str, str]()
    if not path.is_file():
        return found
    for line, row in read_rows(path, [["image", "group"]], "fix the file"):
        if len(row) != 2 or not all(row) or not all(map(str.isprintable, row)):
            raise BadInputError(
                f"{path} line {line} is not an image and its group: write train/<class>/<image>,<group>"
            )
        if found.setdefault(row[0], row[1]) != row[1]:
            raise BadInputError(f"{path} line {line} gives {row[0]} another group than a line before: remove one")
    return found


def images(raw: Path) -> Iterator[SourceImage]:
    """The files of one part after the other, sorted by class and file name. Classes of train have the first labels.
    Raises `BadInputError` for folders that cannot be used, and warns on stderr about files that are left out and about
    similar class names."""
    parts = _parts(raw)
    problems: list[str] = []
    ignored: list[Path] = []
    beside = visible(raw, ignored)
    files = {part: dict(classes_below(raw / part, problems, ignored)) for part in parts}
    if problems:
        raise BadInputError(f"folders that cannot be used: {len(problems):,}{listed(problems, _list(raw, 'problems'))}")
    say_ignored(raw, ignored)
    if left_out := [shown(path.name) for path in beside if path.name not in (*parts, GROUPS)]:
        named = listed(left_out, _list(raw, "left_out"))
        print(f"warning: {raw}: only {', '.join(parts)} are read. These are left out:{named}", file=sys.stderr)
    names = _class_names({path for classes in files.values() for path in classes})
    if alike := list(_alike(names.values())):
        named = listed(alike, _list(raw, "alike"))
        print(f"warning: {raw}: the names of these classes are alike. Are they one class?{named}", file=sys.stderr)
    groups, labels = _groups(raw), dict[str, int]()
    there = {file.relative_to(raw).as_posix() for classes in files.values() for of in classes.values() for file in of}
    problems = [f"{shown(name)} has no line" for name in sorted(there - groups.keys())] if groups else []
    problems += [f"{shown(name)} is named, but there is no such image" for name in sorted(groups.keys() - there)]
    if problems:
        said = f"{raw / GROUPS} must name each image once: {len(problems):,} do not fit"
        raise BadInputError(f"{said}{listed(problems, _list(raw, 'groups'))}")
    for part, classes in files.items():
        for class_name, path in sorted((names[path], path) for path in classes):
            label = labels.setdefault(class_name, len(labels))
            for file in classes[path]:
                encoded, problem = read(file)
                name = file.relative_to(raw).as_posix()
                yield SourceImage(name, label, class_name, part, encoded, problem=problem, group=groups.get(name, ""))


def split(entries: list[Entry]) -> dict[str, list[int]]:
    """The manifests that the folders define."""
    present = {entry.part for entry in entries}
    return datasets.by_part(entries, tuple(part for part in ("train", "test", "query", "gallery") if part in present))
