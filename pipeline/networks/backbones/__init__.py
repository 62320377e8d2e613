"""One file for each network. It has a class `Backbone(nn.Module)`, which turns images (batch, `channels`, height,
width), float32 and already normalised, into features. Its attributes are

- `channels`: the number of channels of the images;
- `features`: the number of features;
- `spatial`: whether it gives maps (batch, `features`, height, width), which the recipe pools, and not vectors (batch,
  `features`);
- `input_size`: the only height and width that it accepts, or None if it accepts any.

A backbone that wraps a library's network holds that network as `trunk`, and weights are then loaded into `trunk`.

A recipe names the file: `resnet50`. If the class takes a variant, the pooling and the input size, as the one for timm
does, the recipe names file and variant: `timm/resnet18`."""
