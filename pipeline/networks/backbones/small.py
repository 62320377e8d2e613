"""The network of the embedded default: three convolutions of stride 2 for 32 x 32 grey images, trained from scratch.

Features keep their position (there is no pooling over height and width), because averaging them halves Recall@1 on
glyphs.
"""

from collections import OrderedDict

from torch import Tensor, nn


def _block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            convolution=nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False),
            norm=nn.BatchNorm2d(outputs),
            relu=nn.ReLU(),
        )
    )


class Backbone(nn.Module):
    """Images (batch, 1, 32, 32), float32, to features (batch, 1024)."""

    channels = 1
    features = 64 * 4 * 4
    spatial = False
    input_size = 32

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(_block(1, 16, 5), _block(16, 32, 3), _block(32, 64, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Features (batch, 1024), float32."""
        maps: Tensor = self.blocks(images)
        return maps.flatten(1)
