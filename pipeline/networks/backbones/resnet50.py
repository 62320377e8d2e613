"""ResNet-50 (He et al. 2016, arXiv 1512.03385), torchvision's, whose published V1 weights want RGB images less
ImageNet's mean over its standard deviation. Proxy-AN's network."""

from torch import Tensor
from torchvision.models.resnet import Bottleneck, ResNet


class Backbone(ResNet):  # type: ignore[misc]  # torchvision has no types
    """Images (batch, 3, height, width), float32, to maps (batch, 2048, height / 32, width / 32), at least 0."""

    channels = 3
    features = 2048
    spatial = True
    input_size = None

    def __init__(self) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3])
        # Pooling and head are the recipe's; what is left has the published file's names.
        del self.avgpool, self.fc

    def forward(self, images: Tensor) -> Tensor:
        """Maps of the last block."""
        maps: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = layer(maps)
        return maps
