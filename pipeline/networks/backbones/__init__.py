"""One file a network: a class `Backbone(nn.Module)` from images (batch, `channels`, height, width), float32 and already
normalised, to features: if `spatial`, maps (batch, `features`, height, width), which the recipe pools; if not, vectors
(batch, `features`). `batch_norms` says whether it has any, `input_size` the one height and width that it takes, None
where it takes any, `published` whether pipeline/networks/weights.py knows pretrained weights, a file of the network's
name whose entries are the network's own. All six are class attributes."""
