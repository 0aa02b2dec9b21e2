"""Fusion networks by name; each is called ``network(visible, infrared) -> fused``."""

from collections.abc import Callable
from functools import partial

from torch import nn

from networks.densefuse import DenseFuse
from networks.ldfusion import LDFusion
from networks.swinfusion import SwinFusion
from networks.u2fusion import U2Fusion
from networks.unet import FusionUNet

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": FusionUNet,
    "densefuse": DenseFuse,
    "u2fusion": U2Fusion,
    "swinfusion": SwinFusion,
    "ldfusion": LDFusion,
    # The same, with an output that passes gradients everywhere.
    "ldfusion-smooth": partial(LDFusion, clamp=False),
}

#: PyTorch ports that differ from the originals above; for their weights, not for training anew.
PORTS: dict[str, Callable[[], nn.Module]] = {
    "densefuse-port": partial(DenseFuse, share=0.5, relu=True, levels=255),
    "u2fusion-port": partial(U2Fusion, padding="zeros", signed=True),
}
