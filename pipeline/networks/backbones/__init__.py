"""One file a network: a class `Backbone(nn.Module)` from images (batch, `channels`, height, width), float32 and already
normalised, to features: if `spatial`, maps (batch, `features`, height, width), which the recipe pools; if not, vectors
(batch, `features`). `input_size` is the one height and width that it takes, None where it takes any. All four are
attributes. A backbone that wraps a network of a library holds it as `trunk`, which is what weights then fit.

A recipe names the file, `resnet50`; where the class takes a variant, the pooling and the input size, as timm's does,
it names both: `timm/resnet18`."""
