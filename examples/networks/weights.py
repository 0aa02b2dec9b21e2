"""Weights of networks on disk: those that train.py writes, and published ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from clip_fusion_loss import EmbeddedFusionModel
from networks import NETWORKS, PORTS
from options import atomic_write

#: The files that train.py writes into --out for inference; and the metadata of the first.
NETWORK, SENTENCES = "network.safetensors", "sentences.safetensors"
NAME, ENCODER = "network", "encoder"
#: Plain numbers of numpy, which some training programs save beside the weights.
_scalar = np.float64(0).__reduce__()[0]
NUMBERS = [
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # numpy 1 and 2
    *(np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))),
]


class Trained(NamedTuple):
    network: nn.Module
    sentences: EmbeddedFusionModel | None  # that the network takes as an input
    encoder: str  # the CLIP of the loss, as in --encoder, to embed new sentences


def save_trained(network: nn.Module, folder: Path, name: str, encoder: str) -> None:
    """Write the weights, on any device, for `load_trained`."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with atomic_write(folder / NETWORK) as temporary:
        temporary.write_bytes(safetensors.torch.save(state, {NAME: name, ENCODER: encoder}))


def load_trained(path: Path) -> Trained:
    """The network that train.py wrote, on the CPU; for other files an OSError or ValueError."""
    path = path / NETWORK if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; pass the --out of train.py")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        build, encoder = NETWORKS[metadata[NAME]], metadata[ENCODER]
        sentences = path.with_name(SENTENCES)
        bank = EmbeddedFusionModel.load(sentences) if sentences.is_file() else None
        network = build() if bank is None else build(bank.text_direction.shape[-1])
        network.load_state_dict(safetensors.torch.load_file(path))
    except Exception as error:  # a foreign or damaged file raises nearly anything
        raise ValueError(
            f"{path} is no network of train.py, or is damaged ({type(error).__name__}: {error}); "
            "for published weights use --weights and --network"
        ) from error
    return Trained(network.eval(), bank, encoder)


def load_published(path: Path, name: str) -> nn.Module:
    """The network `name` with published weights, on the CPU and ready to fuse.

    The file holds a `state_dict`, written by `torch.save` or as safetensors, or dictionaries with
    one in them. If the names differ, weights are matched by their order, where all shapes must
    fit. Other networks in the file, say the VGG of a loss, are left out if they are under another
    name. Code in the file is not run. Other files are an OSError or ValueError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; check the path")
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            with torch.serialization.safe_globals(NUMBERS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file raises nearly anything
        raise ValueError(  # without torch's message, which says how to run the code in a file
            f"{path} is damaged, of TensorFlow, or holds other objects than tensors and numbers; "
            "where the PyTorch network is defined write torch.save(network.state_dict(), path)"
        ) from error
    network = (NETWORKS | PORTS)[name]()
    ours = network.state_dict()
    shapes = [value.shape for value in ours.values()]
    for theirs in _state_dicts(content):
        if theirs.keys() != ours.keys() and [v.shape for v in theirs.values()] == shapes:
            theirs = dict(zip(ours, theirs.values(), strict=True))
        if theirs.keys() == ours.keys():
            network.load_state_dict(theirs)
            return network.eval()
    raise ValueError(
        f"{path} does not hold the weights of {name}, {len(shapes)} tensors from {list(shapes[0])} "
        f"to {list(shapes[-1])}; check --network"
    )


def _state_dicts(content: Any) -> Iterator[dict[str, Tensor]]:
    """All dictionaries of tensors in `content`, whole and by the first part of the names."""
    if not isinstance(content, dict):
        return
    tensors = {str(name): value for name, value in content.items() if torch.is_tensor(value)}
    tensors = {name: value for name, value in tensors.items() if value.is_floating_point()}
    yield tensors
    for first in {name.partition(".")[0] + "." for name in tensors}:
        parts = {name: value for name, value in tensors.items() if name.startswith(first)}
        yield {name.removeprefix(first): value for name, value in parts.items()}
    for value in content.values():
        yield from _state_dicts(value)
