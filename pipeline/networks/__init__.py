"""Networks: backbones (one file each), pooling and heads, freezing, pretrained weights."""
