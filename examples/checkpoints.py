"""What a training leaves behind: everything to go on with it, and to fuse images."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from files import written_whole
from networks.catalogue import NETWORKS

FORMAT = "clip_fusion_loss example checkpoint 1"


class Checkpoint(NamedTuple):
    """The state of a training after `step` steps."""

    network: str
    """Its name in `networks.catalogue`."""
    settings: dict[str, Any]
    """What decides the numbers of the run, as plain values."""
    step: int
    weights: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write it, replacing an older one only when the new one is complete."""
    with written_whole(path) as temporary:
        torch.save({"format": FORMAT, **checkpoint._asdict()}, temporary)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote, to CPU memory and without running code from the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != FORMAT:
            raise ValueError("it has another format")
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
    checkpoint = load_checkpoint(path)
    network = NETWORKS[checkpoint.network]()
    network.load_state_dict(checkpoint.weights)
    return network.eval()
