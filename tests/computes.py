"""Computes functions, trains the default's network for a few steps with each of its losses, clusters and retrieves: a
line of hashes each.

Run as a script, on any processor or an emulated one, in the repository's root: the lines are to be the same.
"""

# The package first: it holds the processor's instructions, which torch may look up when it is imported.
import pipeline  # noqa: F401, I001

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.base.config import read_params
from pipeline.losses import proxy_an, proxy_anchor, proxy_gml, proxy_nca
from pipeline.metrics.clustering import clustering
from pipeline.metrics.retrieval import per_query, retrieval
from pipeline.networks.network import initial_network, prepare
from pipeline.training.embedding import embed
from pipeline.training.optimiser import build_optimiser
from pipeline.training.step import training_step

CLASSES, STEPS = 31, 2
ANY = [torch.exp, torch.expm1, torch.log1p, torch.sin, torch.cos, torch.tan, torch.tanh, torch.atan, torch.erf]
ANY += [torch.erfc, torch.sigmoid, torch.exp2, torch.sinh, torch.rsqrt, torch.sqrt, torch.log, torch.log2, torch.log10]
UNIT = [torch.asin, torch.acos, torch.erfinv]
"""Functions of any numbers above 0, and of numbers below 1."""


def hashed(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()[
        :16
    ]


def functions(values: Tensor) -> str:
    """Of what PyTorch computes number by number, by MKL or by itself; and distances with their gradients."""
    found = [function(values) for function in ANY]
    found += [function(values / values.max()) for function in UNIT]
    found += [values**exponent for exponent in (0.5, -0.5, 1.5, 2, 3, -1, 0.25)]
    found += [torch.nn.functional.gelu(values), values.view(-1, 50).logsumexp(1), values.view(-1, 50).norm(dim=1)]
    rows = values.view(-1, 50).clone().requires_grad_()
    distances = torch.cdist(rows, rows)
    (distances.sin()).sum().backward()
    return hashed(*found, distances, rows.grad)


def main() -> None:
    params = read_params(Path("tests/grid/params.yaml"))
    recipe = params.recipes["glyphs"]
    device = prepare(recipe, "cpu")
    generator = np.random.Generator(np.random.Philox(0))
    numbers = torch.from_numpy(np.abs(np.random.Generator(np.random.Philox(1)).standard_normal(4000)))
    print("functions", functions(numbers.float()), functions(numbers))
    points = torch.from_numpy(generator.standard_normal((600, 64)).astype(np.float32))
    points += 0.3 * points[np.arange(600) % 20].clone()
    of = torch.from_numpy(np.arange(600) % 20)
    for kmeans in ("faiss", "scikit-learn"):
        print(kmeans, clustering(points, of, seed=0, kmeans=kmeans))
    print("ranks", hashed(*per_query(points, of, None, None, "exact")))
    pixels = torch.from_numpy(generator.integers(0, 256, (200, 1, 32, 32), dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, CLASSES, 200))
    for module in (proxy_gml, proxy_an, proxy_anchor, proxy_nca):
        name = module.__name__.split(".")[-1]
        torch.manual_seed(0)
        network = initial_network(recipe)
        criterion = module.Loss(CLASSES, recipe.dimension, **params.losses[name])
        optimiser = build_optimiser(recipe, network, criterion)
        for step in range(STEPS):
            batch = slice(32 * step, 32 * step + 32)
            loss = training_step(recipe, network, criterion, optimiser, pixels[batch], labels[batch], device)
        print(name, hashed(loss), hashed(*network.parameters(), *criterion.parameters()), flush=True)
    embeddings = embed(network, pixels, recipe, device)
    print("embeddings", hashed(embeddings))
    print("retrieval", retrieval(embeddings, labels, ks=(1, 4)))


if __name__ == "__main__":
    main()
