"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), from torchvision. The published weights need RGB images,
normalised by ImageNet's mean and standard deviation. With 2.2 million parameters it is small enough for photographs on
a CPU."""

from torch import Tensor, nn
from torchvision.models.mobilenetv2 import MobileNetV2


class Backbone(nn.Module):
    """Images (batch, 3, height, width), float32, to maps (batch, 1280, height / 32, width / 32), from 0 to 6."""

    channels = 3
    features = 1280
    spatial = True
    input_size = None

    def __init__(self) -> None:
        super().__init__()
        self.trunk = MobileNetV2().features

    def forward(self, images: Tensor) -> Tensor:
        """The maps of the last block."""
        maps: Tensor = self.trunk(images)
        return maps
