"""Arrays as files whose bytes do not depend on the version of Python or zlib."""

import io
import zipfile
from pathlib import Path

import numpy as np


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name as .npz, uncompressed, in their order. Equal arrays give equal bytes.

    `numpy.savez` leaves the headers of the members to `zipfile`, which writes other ones in Python 3.11.2 than in
    3.11.7. For a member of known size, dated 1980, these are the same in every version.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, values in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, values, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getbuffer())
