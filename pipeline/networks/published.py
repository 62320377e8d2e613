"""The published weights of the networks that have a file here: addresses, checksums, and what is left out of them."""

from pipeline.data.file import File

FILES = {
    # pretrained-models.pytorch's; input BGR, 0..255, mean 104 117 128. The hash makes up for http.
    "bn_inception": File(
        "bn_inception.pth",
        (
            "https://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth",
            "http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth",
        ),
        "somebody who has bn_inception-52deb4733.pth (data.lip6.fr is often down)",
        sha256="52deb473314542a5c2f87e9e6f26f4ca42fe863d15f986414dbae8c2dfdd2353",
    ),
    # torchvision's IMAGENET1K_V1, not the newer V2.
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
}

CLASSIFIERS = {
    "bn_inception": ("last_linear.",),
    "resnet50": ("fc.",),
    "deit_small_distilled": ("head.", "head_dist."),
}
"""How the names of the classifier's entries begin."""
