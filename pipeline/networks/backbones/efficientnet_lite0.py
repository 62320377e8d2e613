"""EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946, without squeeze and excitation): timm's tf_efficientnet_lite0,
3.4 million parameters. The published weights need RGB images from -1 to 1."""

from typing import Any

import timm
from torch import Tensor, nn


class Backbone(nn.Module):
    """Images (batch, 3, height, width), float32, to maps (batch, 1280, height / 32, width / 32), from 0 to 6."""

    channels = 3
    features = 1280
    spatial = True
    input_size = None

    def __init__(self) -> None:
        super().__init__()
        self.trunk: Any = timm.create_model("tf_efficientnet_lite0", num_classes=0)

    def forward(self, images: Tensor) -> Tensor:
        """The maps of the last block."""
        maps: Tensor = self.trunk.forward_features(images)
        return maps
