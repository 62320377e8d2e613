"""Checks of the content of a downloaded file for which nobody has published a checksum."""

from collections.abc import Callable
from pathlib import Path

from pipeline.base.files import BadInputError
from pipeline.data import archives

IMAGES = (".jpg", ".jpeg", ".png")


def archive_with(*needed: str) -> Callable[[Path], None]:
    """A check that a file is an archive that holds the members `needed`, and that it can be read to its end, each image
    against the archive's own checksum. A name that ends in a slash is a folder, which must hold an image. The check
    raises `BadInputError`."""

    def check(path: Path) -> None:
        missing = dict.fromkeys(needed)
        for name, _ in archives.read(path, lambda name: name in needed or name.lower().endswith(IMAGES)):
            for member in needed:
                if name == member or (member.endswith("/") and name.startswith(member)):
                    missing.pop(member, None)
        if missing:
            raise BadInputError(f"{path} holds no {' and no '.join(missing)}: this is another archive")

    return check
