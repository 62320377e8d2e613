"""Where the published weights of a network come from, and the check of a file before it is kept."""

from pathlib import Path

from pipeline.base.files import BadInputError, submodule
from pipeline.data.file import File
from pipeline.networks.published import FILES, file_name
from pipeline.networks.weights import fitted, load_weights


def published_file(network: str) -> File:
    """What is known about the published weights of a network. Raises `BadInputError` if nothing is known."""
    if network in FILES:
        return FILES[network]
    name, (file, _, variant) = file_name(network), network.partition("/")
    if name is None:
        raise BadInputError(f"{network} has no published weights that are known here: choose among {', '.join(FILES)}")
    urls, classifier = submodule("networks.backbones", file).published(variant)

    def check(path: Path) -> None:
        import torch

        from pipeline.networks.network import make_backbone

        # Comparing names and shapes needs no memory for the backbone's numbers.
        with torch.device("meta"):
            backbone = make_backbone(network, "none", submodule("networks.backbones", file).size_of(variant))
        wanted = backbone.trunk.state_dict()
        fitted(backbone.converted(load_weights(path, "")), wanted, classifier, str(path))

    return File(name, urls, urls[0], check=check)
