"""BN-Inception (Ioffe and Szegedy 2015, arXiv 1502.03167), the network of both papers, 11 million parameters.

The parameters have the names of the published file (`bn_inception` in pipeline/networks/published.py), all in one
level. The published weights need BGR images of 0..255. Running statistics use PyTorch's default momentum of 0.1. The
published file does not say which one to use, and it matters only if the statistics are trained.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, relu

BLOCKS = {
    #      1x1, 3x3 reduced, 3x3, double 3x3 reduced, double 3x3, projection after pooling; 0 means no such branch
    "3a": (64, 64, 64, 64, 96, 32),
    "3b": (64, 64, 96, 64, 96, 64),
    "3c": (0, 128, 160, 64, 96, 0),
    "4a": (224, 64, 96, 96, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 128),
    "4d": (96, 128, 192, 160, 192, 128),
    "4e": (0, 128, 192, 192, 256, 0),
    "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}
"""The output channels of every block's convolutions."""

HALVING = ("3c", "4e")
"""The blocks of stride 2. Their pooled branch is only maximum pooling, without a convolution."""


def _halved(maps: Tensor) -> Tensor:
    """3 x 3 maximum pooling of stride 2. As in Caffe, a window that begins inside the map counts."""
    return max_pool2d(maps, 3, stride=2, ceil_mode=True)


class Backbone(nn.Module):
    """Images (batch, 3, height, width), float32, to maps (batch, 1024, height / 32, width / 32), at least 0."""

    channels = 3
    features = 1024
    spatial = True
    input_size = None

    def __init__(self) -> None:
        super().__init__()
        self._add("conv1_7x7_s2", 3, 64, 7, stride=2)
        self._add("conv2_3x3_reduce", 64, 64, 1)
        self._add("conv2_3x3", 64, 192, 3)
        inputs = 192
        for block, (single, reduced, triple, double_reduced, double, projected) in BLOCKS.items():
            name, stride = f"inception_{block}", 2 if block in HALVING else 1
            if single:
                self._add(f"{name}_1x1", inputs, single, 1)
            self._add(f"{name}_3x3_reduce", inputs, reduced, 1)
            self._add(f"{name}_3x3", reduced, triple, 3, stride)
            self._add(f"{name}_double_3x3_reduce", inputs, double_reduced, 1)
            self._add(f"{name}_double_3x3_1", double_reduced, double, 3)
            self._add(f"{name}_double_3x3_2", double, double, 3, stride)
            if projected:
                self._add(f"{name}_pool_proj", inputs, projected, 1)
            inputs = single + triple + double + (projected or inputs)

    def _add(self, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        self.add_module(name, nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs))

    def _through(self, maps: Tensor, *names: str) -> Tensor:
        """`maps` through convolutions, each with its batch norm and ReLU."""
        for name in names:
            norm = self.get_submodule(f"{name}_bn")
            maps = relu(norm(self.get_submodule(name)(maps)), inplace=True)
        return maps

    def _block(self, block: str, maps: Tensor) -> Tensor:
        """The branches of a block, concatenated along the channels: 1x1, 3x3, double 3x3, pooled."""
        name = f"inception_{block}"
        triple = self._through(maps, f"{name}_3x3_reduce", f"{name}_3x3")
        double = self._through(maps, f"{name}_double_3x3_reduce", f"{name}_double_3x3_1", f"{name}_double_3x3_2")
        if block in HALVING:
            return torch.cat([triple, double, _halved(maps)], dim=1)
        # Only the last block takes the maximum. The averages include the zeros beyond the edge.
        pooled = (max_pool2d if block == "5b" else avg_pool2d)(maps, 3, stride=1, padding=1)
        return torch.cat(
            [self._through(maps, f"{name}_1x1"), triple, double, self._through(pooled, f"{name}_pool_proj")], dim=1
        )

    def forward(self, images: Tensor) -> Tensor:
        """The maps of the last block."""
        maps = _halved(self._through(images, "conv1_7x7_s2"))
        maps = _halved(self._through(maps, "conv2_3x3_reduce", "conv2_3x3"))
        for block in BLOCKS:
            maps = self._block(block, maps)
        return maps
