"""Weights of networks on disk: those that train.py writes, and published ones."""

from collections import defaultdict
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
    sentences: EmbeddedFusionModel | None
    """Those that the network was trained for, if it takes one as an input."""
    encoder: str
    """The CLIP of the loss, as in --encoder, to embed new sentences."""


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

    If the names differ, layers are matched by the shapes of their weights, and layers of equal
    shape by their order in the file. Other networks in the file, say the VGG of a loss, are left
    out if they are under another name.

    Args:
        path: a `state_dict` written by `torch.save` or as safetensors, or dictionaries with one in
            them. Code in the file is not run.
        name: a name in `NETWORKS` or `PORTS`.

    Returns:
        The network on the CPU, ready to fuse; and whether some layers were matched by order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no state_dict, or its layers are not those of the network.
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
    our_layers = _layers_by_shape(ours)
    wanted = {shape: len(layers) for shape, layers in our_layers.items()}
    found: list[Any] = []
    for theirs in _state_dicts(content):
        if theirs.keys() == ours.keys():
            network.load_state_dict(theirs)
            return network.eval(), False
        their_layers = _layers_by_shape(theirs)
        found.append({shape: len(layers) for shape, layers in their_layers.items()})
        if found[-1] == wanted:
            break
    else:
        got = found[0] if found else {}
        odd = sorted(shape for shape in got | wanted if got.get(shape) != wanted.get(shape))
        raise ValueError(
            f"{path} does not hold the layers of {name}; check --network. The number of layers "
            "differs for these shapes: " + "; ".join(map(str, odd[:5]))
        )
    for shape, layers in our_layers.items():
        for layer, their_layer in zip(layers, their_layers[shape], strict=True):
            for part in dict(shape):
                ours[layer + part] = theirs[their_layer + part]
    network.load_state_dict(ours)
    return network.eval(), any(count > 1 for count in wanted.values())


def _state_dicts(content: Any) -> Iterator[dict[str, Tensor]]:
    """All dictionaries of tensors in `content`, whole and by the first part of the names."""
    if not isinstance(content, dict):
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield tensors
        modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, value in tensors.items():
            first, _, rest = name.partition(".")
            modules[first][rest] = value
        yield from modules.values()
    for value in content.values():
        yield from _state_dicts(value)


def _layers_by_shape(state: dict[str, Tensor]) -> dict[tuple[Any, ...], list[str]]:
    """(("weight", shape), ("bias", shape), ...) -> the prefixes of such layers, in order."""
    layers: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, values in state.items():
        if values.is_floating_point():
            layer, dot, part = name.rpartition(".")
            layers[layer + dot][part] = tuple(values.shape)
    by_shape: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for layer, parts in layers.items():
        by_shape[tuple(sorted(parts.items()))].append(layer)
    return by_shape
