"""DeiT-S/16, distilled (Touvron et al. 2021, arXiv 2012.12877), from timm. The published weights need RGB images,
normalised by ImageNet's mean and standard deviation. Proxy-AN's code has this network, but without released
settings."""

from timm.models.deit import VisionTransformerDistilled
from torch import Tensor


class Backbone(VisionTransformerDistilled):
    """Images (batch, 3, 224, 224), float32, to the mean (batch, 384) of class token and distillation token after the
    last norm. timm 0.6 to 1.0 averages the outputs of the distilled model's two classifiers; without classes this is
    the mean of the two tokens."""

    channels = 3
    features = 384
    spatial = False
    input_size = 224

    def __init__(self) -> None:
        # Without classes there are no classifiers, and the other parameters have the names of the published file.
        settings = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6, "num_classes": 0}
        super().__init__(**settings)  # type: ignore[no-untyped-call]  # timm's class has no types

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]  # timm's takes attention masks
        """The mean of class token and distillation token, (batch, 384)."""
        return self.forward_features(images)[:, :2].mean(1)
