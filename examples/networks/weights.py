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

#: The files that train.py writes into --out for inference.
NETWORK, SENTENCES = "network.safetensors", "sentences.safetensors"
#: What a network is called in the metadata of its file, and the CLIP it was trained with.
NAME, ENCODER = "network", "encoder"
TENSORFLOW = (".ckpt", ".meta", ".index", ".pb", ".h5", ".keras")

#: Plain numbers of numpy, which some training programs save beside the weights.
_scalar = np.float64(0).__reduce__()[0]
NUMBERS = [
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # numpy 1 and 2
    *(np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))),
]


class Trained(NamedTuple):
    """What `load_trained` finds."""

    network: nn.Module
    sentences: EmbeddedFusionModel | None  # that the network takes as an input
    encoder: str  # the CLIP of the loss, as in --encoder, to embed new sentences


def save_trained(network: nn.Module, folder: Path, name: str, encoder: str) -> None:
    """Write the weights, on any device, for `load_trained`."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with atomic_write(folder / NETWORK) as temporary:
        temporary.write_bytes(safetensors.torch.save(state, {NAME: name, ENCODER: encoder}))


def load_trained(path: Path) -> Trained:
    """The network of a folder that train.py wrote, on the CPU and ready to fuse.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it was not written by train.py, or is damaged.
    """
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


def load_published(path: Path, name: str) -> tuple[nn.Module, bool]:
    """The network `name` with published weights, whose parameter names may be others.

    The file holds a `state_dict`, written by `torch.save` or as safetensors, or dictionaries with
    one in them. If the names differ, weights are matched by their order, where all shapes must
    fit. Other networks in the file, say the VGG of a loss, are left out if they are under another
    name. Code in the file is not run.

    Returns:
        The network on the CPU, ready to fuse; and whether the names differ.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no state_dict, or its weights are not those of the network.
    """
    if path.suffix in TENSORFLOW or ".data-" in path.name:
        raise ValueError(
            f"{path} is of TensorFlow, whose checkpoints are not read; use the weights of a "
            "PyTorch version of the network"
        )
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
            f"{path} is damaged, or holds other objects than tensors and numbers; write the "
            "weights where the network is defined, with torch.save(network.state_dict(), path)"
        ) from error
    network = (NETWORKS | PORTS)[name]()
    ours = network.state_dict()
    shapes = [value.shape for value in ours.values()]
    for theirs in _state_dicts(content):
        renamed = theirs.keys() != ours.keys()
        if renamed and [value.shape for value in theirs.values()] == shapes:
            theirs = dict(zip(ours, theirs.values(), strict=True))
        if theirs.keys() == ours.keys():
            network.load_state_dict(theirs)
            return network.eval(), renamed
    raise ValueError(
        f"{path} does not hold the weights of {name}, {len(shapes)} tensors from {list(shapes[0])} "
        f"to {list(shapes[-1])}; check --network"
    )


def _state_dicts(content: Any) -> Iterator[dict[str, Tensor]]:
    """All dictionaries of tensors in `content`, whole and by the first part of the names."""
    if not isinstance(content, dict):
        return
    tensors = {
        str(name): value
        for name, value in content.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    yield tensors
    for first in {name.partition(".")[0] + "." for name in tensors}:
        parts = {name: value for name, value in tensors.items() if name.startswith(first)}
        yield {name.removeprefix(first): value for name, value in parts.items()}
    for value in content.values():
        yield from _state_dicts(value)
