"""DeiT-S/16, distilled (Touvron et al. 2021, arXiv 2012.12877), timm's, whose published weights want RGB images less
ImageNet's mean over its standard deviation. In Proxy-AN's code, without released settings."""

from timm.models.deit import VisionTransformerDistilled
from torch import Tensor


class Backbone(VisionTransformerDistilled):
    """Images (batch, 3, 224, 224), float32, to the mean of class and distillation token after the last norm (batch,
    384): what the distilled model's two classifiers, without classes, average in timm 0.6 to 1.0."""

    channels = 3
    features = 384
    spatial = False
    input_size = 224

    def __init__(self) -> None:
        # Without classes there are no classifiers, and what is left has the published file's names.
        settings = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6, "num_classes": 0}
        super().__init__(**settings)  # type: ignore[no-untyped-call]  # timm's has no types

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]  # timm's takes attention masks
        """The mean of class and distillation token."""
        return self.forward_features(images)[:, :2].mean(1)
