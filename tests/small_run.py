"""A run that is trained and evaluated in seconds in the test's own process, on 48 small images with a gallery apart."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.base.config import read_params
from pipeline.data.manifests import Row, write_manifests
from pipeline.data.packed import PackedImages, SourceImage, pack
from pipeline.runs.run import Run, make_run
from tests import GRID
from tests.test_images import encoded


def small_run(folder: Path, **changes) -> Run:
    """Make the dataset in `folder`, which is to be the working directory. The recipe is that of glyphs with changes."""
    params = read_params(GRID / "params.yaml")
    generator = np.random.default_rng(0)
    base = generator.integers(0, 256, (8, 36, 36), dtype=np.uint8)
    pixels = [base[n % 8] // 2 + generator.integers(0, 128, (36, 36), dtype=np.uint8) for n in range(48)]
    crop = slice(0, 36 if "augment" in changes else 32)
    sources = [
        SourceImage(
            f"{n}.png", n % 8, str(n % 8), "", encoded(image[crop, crop], "PNG", "L"), (n % 8, n), group=str(n % 3)
        )
        for n, image in enumerate(pixels)
    ]
    (folder / "data/splits").mkdir(parents=True)
    (folder / "data/packed").mkdir()
    pack(iter(sources), folder / "data/packed/glyphs")
    rows = [Row(entry.image, entry.label, entry.name) for entry in PackedImages(folder / "data/packed/glyphs").entries]
    parts = {"train": rows[:24], "query": rows[24::2], "gallery": rows[25::2]}
    write_manifests(folder / "data/splits/glyphs", parts, [folder / "data/packed/glyphs/index.csv"])
    update = {"epochs": 2, "schedule": {"name": "constant"}, "batch_size": 8, "recall_at": [1, 2]} | changes
    run = make_run(GRID / "params.yaml", params, "glyphs", "proxy_gml", 0)
    return replace(run, recipe=run.recipe.model_copy(update=update))
