"""ResNet-50 (He et al. 2016, arXiv 1512.03385), from torchvision: Proxy-AN's network. The published V1 weights need RGB
images, normalised by ImageNet's mean and standard deviation."""

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
        # The recipe defines pooling and head. The other parameters have the names of the published file.
        del self.avgpool, self.fc

    def forward(self, images: Tensor) -> Tensor:
        """The maps of the last block."""
        maps: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = layer(maps)
        return maps
