"""Checkpoints: the state of a training, to resume it and to fuse images."""

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from clip_fusion_loss import EmbeddedFusionModel
from parts.files import written_whole
from parts.networks.catalogue import NETWORKS, PORTS
from parts.networks.conditioned import Conditioned

FORMAT = "clip_fusion_loss example checkpoint 1"


class Checkpoint(NamedTuple):
    """The state of a training after `step` steps."""

    network: str
    """Its name in `parts.networks.catalogue`."""
    settings: dict[str, Any]
    """All options that affect the results, as plain values."""
    step: int
    weights: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    bank: EmbeddedFusionModel | None = None
    """The sentences, if the network takes one as an input."""
    encoder: str | None = None
    """The CLIP of the loss, as in --encoder, to embed new sentences."""


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write it, replacing an older one only when the new one is complete."""
    content = {"format": FORMAT, **checkpoint._asdict()}
    if checkpoint.bank is not None:
        content["bank"] = _packed(checkpoint.bank)
    with written_whole(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of `save_checkpoint` to the CPU, without running code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, or it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; check the path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != FORMAT:
            raise ValueError("it has another format")
        if content.get("bank") is not None:
            content["bank"] = _unpacked(content["bank"])
        checkpoint = Checkpoint(**content)
    except Exception as error:  # a foreign file makes unpickling raise nearly anything
        raise ValueError(f"{path} is no checkpoint of train.py: {error}") from error
    if checkpoint.network not in NETWORKS:
        raise ValueError(
            f"{path} holds a network {checkpoint.network!r}, known are {', '.join(NETWORKS)}"
        )
    return checkpoint


def load_network(path: Path) -> nn.Module:
    """The trained network of a checkpoint, on the CPU and ready to fuse; raises likewise."""
    return network_of(load_checkpoint(path))


def network_of(checkpoint: Checkpoint) -> nn.Module:
    """The trained network, on the CPU and ready to fuse; `Conditioned` if there is a bank."""
    network = NETWORKS[checkpoint.network]()
    if checkpoint.bank is not None:
        network = Conditioned(network, checkpoint.bank.text_direction.shape[-1])
    network.load_state_dict(checkpoint.weights)
    return network.eval()


def _packed(bank: EmbeddedFusionModel) -> Tensor:
    """The file that `bank.save` writes, as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        bank.save(Path(folder) / "bank")
        return torch.frombuffer(bytearray((Path(folder) / "bank").read_bytes()), dtype=torch.uint8)


def _unpacked(content: Tensor) -> EmbeddedFusionModel:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank"
        path.write_bytes(content.numpy().tobytes())
        return EmbeddedFusionModel.load(path)


def load_weights(path: Path, name: str) -> tuple[nn.Module, bool]:
    """The network `name` with published weights, whose parameter names may be others.

    If the names differ, layers are matched by the shapes of their weights, and layers of equal
    shape by their order in the file.

    Args:
        path: a `state_dict` written by `torch.save` or as safetensors, or a dictionary with exactly
            one entry that is a state_dict. Code in the file is not run.
        name: a name in `parts.networks.catalogue`.

    Returns:
        The network on the CPU, ready to fuse; and whether some layers were matched by order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a state_dict, or its layers are not those of the network.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; check the path")
    network = (NETWORKS | PORTS)[name]()
    ours = network.state_dict()
    try:
        if path.suffix == ".safetensors":
            theirs = safetensors.torch.load_file(path)
        else:
            theirs = torch.load(path, map_location="cpu", weights_only=True)
            if not _holds_tensors(theirs):
                (theirs,) = filter(_holds_tensors, theirs.values())
    except Exception as error:  # a foreign file makes unpickling raise nearly anything
        raise ValueError(
            f"{path} must hold one state_dict and no other objects; write it where the network "
            f"is defined, with torch.save(network.state_dict(), path): {error}"
        ) from error
    if theirs.keys() == ours.keys():
        network.load_state_dict(theirs)
        return network.eval(), False
    our_layers, their_layers = _layers_by_shape(ours), _layers_by_shape(theirs)
    counts, wanted = (
        {k: len(v) for k, v in layers.items()} for layers in (their_layers, our_layers)
    )
    if counts != wanted:
        odd = sorted(shape for shape in counts | wanted if counts.get(shape) != wanted.get(shape))
        raise ValueError(
            f"{path} does not hold the layers of {name}; check --network. The number of layers "
            "differs for these shapes: " + "; ".join(map(str, odd[:5]))
        )
    for shape, layers in our_layers.items():
        for layer, found in zip(layers, their_layers[shape], strict=True):
            for part in dict(shape):
                ours[layer + part] = theirs[found + part]
    network.load_state_dict(ours)
    return network.eval(), any(count > 1 for count in counts.values())


def _holds_tensors(value: Any) -> bool:
    values = value.values() if isinstance(value, dict) else ()
    return bool(values) and all(isinstance(entry, Tensor) for entry in values)


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
