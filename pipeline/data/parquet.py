"""Images and labels from Parquet files, as the library `datasets` writes them and the hub keeps them: a column with
images, as bytes or as a struct with `bytes`, and a column with labels, as text or as whole numbers. The names of
numbered classes are in the schema's metadata, under `huggingface`.

Nothing in a file is believed: paths in it are not used, and its sizes are bounded.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.base.files import BadInputError
from pipeline.data import archives

ENDING = ".parquet"

ROWS = 8
"""The rows that are in memory at a time, each with an image of at most `archives.READ_LIMIT` bytes."""

BUFFER = 1 << 20
"""The bytes of a column that are read at a time, so that no group of rows is in memory as a whole."""


class Row(NamedTuple):
    """An image's bytes, the name of its class, and where it is, for messages."""

    place: str
    label: str
    encoded: bytes


def files(source: Path) -> list[Path]:
    """The Parquet files of a folder, however deep they lie, or the one that `source` is itself."""
    paths = archives.files(source) if source.is_dir() else [source]
    return [path for path in paths if path.name.lower().endswith(ENDING) and path.is_file()]


def read(path: Path, image: str = "image", label: str = "label") -> Iterator[Row]:
    """The rows of a file, with the columns `image` and `label`. Raises `BadInputError` for a file that is damaged or no
    Parquet file, that lacks a column or has it of another kind, for a row without an image or a label, and for absurd
    sizes."""
    import pyarrow as pa  # here, because only who brings Parquet files needs it
    import pyarrow.parquet as pq

    budget, row = archives.MEMBER_LIMIT + archives.GROWTH_LIMIT * path.stat().st_size, 0
    try:
        with pq.ParquetFile(path, buffer_size=BUFFER, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            for name in (image, label):
                if schema.names.count(name) != 1:
                    has = ", ".join(schema.names)[:500]
                    raise BadInputError(
                        f"{path} has no single column {name}, its columns are {has}: `pipeline.import_images` takes "
                        "other names with --image-column and --label-column"
                    )
            kind, inside = schema.field(image).type, image
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                kind, inside = kind.field("bytes").type, f"{image}.bytes"
            if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
                raise BadInputError(f"{path}: the column {image} holds {kind}, not the bytes of images")
            if file.metadata.num_rows > archives.MOST_MEMBERS:
                raise BadInputError(f"{path} has more than {archives.MOST_MEMBERS:,} rows, which is too much")
            names = _class_names(path, schema.metadata, label)
            for batch in file.iter_batches(batch_size=ROWS, columns=[inside, label], use_threads=False):
                for content, value in zip(batch[image].to_pylist(), batch[label].to_pylist(), strict=True):
                    row += 1
                    place = f"{path} row {row:,}"
                    encoded = content["bytes"] if isinstance(content, dict) else content
                    if not encoded:
                        raise BadInputError(f"{place} has no image: the file must hold the bytes of each image")
                    budget -= len(encoded)
                    if len(encoded) > archives.READ_LIMIT or budget < 0:
                        raise BadInputError(f"{place}: its images take too many bytes")
                    yield Row(place, _class_name(place, value, names), encoded)
    except BadInputError:
        raise
    except Exception as error:  # a damaged file leads to many kinds of errors
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInputError(f"{path} is damaged, or no Parquet file ({reason})") from None


def _class_names(path: Path, metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """The names of the classes whose numbers are in the column `label`, as `datasets` notes them; None if it has noted
    none. Raises `BadInputError` if they cannot be used."""
    try:
        feature: Any = json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {})
        feature = feature.get("features", {}).get(label, {})
        if feature.get("_type") != "ClassLabel" or feature.get("names") is None:
            return None
        names = feature["names"]
        if len({*names}) == len(names) and all(isinstance(name, str) and name.strip() for name in names):
            return list(names)
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise BadInputError(f"{path}: the names of the classes in its metadata are damaged, or two are the same")


def _class_name(place: str, value: object, names: list[str] | None) -> str:
    """The name of a label's class. Raises `BadInputError` for one that is missing or impossible."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if type(value) is int and value >= 0 and (names is None or value < len(names)):
        return names[value].strip() if names else str(value)
    known = f" among {len(names):,} classes" if names else ""
    raise BadInputError(f"{place}: its label should be text or a whole number{known}, found {str(value)[:80]}")
