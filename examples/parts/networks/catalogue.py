"""The networks by name, as command lines and checkpoints call them."""

from collections.abc import Callable
from functools import partial

from torch import nn

from parts.networks.densefuse import DenseFuse
from parts.networks.ldfusion import LDFusion
from parts.networks.swinfusion import SwinFusion
from parts.networks.u2fusion import U2Fusion

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "densefuse": DenseFuse,
    "u2fusion": U2Fusion,
    "swinfusion": SwinFusion,
    "ldfusion": LDFusion,
    # The same, with an output that passes gradients everywhere.
    "ldfusion-smooth": partial(LDFusion, clamp=False),
}

#: PyTorch ports that differ from the originals above; for their weights, not for training anew.
PORTS: dict[str, Callable[[], nn.Module]] = {
    "densefuse-port": partial(DenseFuse, fusion="average", relu=True, levels=255),
    "u2fusion-port": partial(U2Fusion, padding="zeros", signed=True),
}
