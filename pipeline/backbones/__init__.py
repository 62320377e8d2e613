"""One file a network: a class `Backbone(nn.Module)` from images (batch, `channels`, height, width), float32 and already
normalised, to features (batch, `features`); `channels` and `features` are class attributes."""
