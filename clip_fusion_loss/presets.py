"""What `LanguageDrivenFusionLoss.paper` loads, or the words when it is not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .encoder import FrozenCLIP
from .regularizers import VGGMaxFeatureLoss

__all__ = ["with_the_papers_networks"]


def with_the_papers_networks(options: dict[str, Any]) -> dict[str, Any]:
    """`options` with the paper's encoder and regularizer where they have none.

    Raises:
        FileNotFoundError: weights that are neither in the caches nor within reach; all of them.
    """
    problems = []
    loaders: dict[str, Callable[[], nn.Module]] = {
        "encoder": FrozenCLIP.from_pretrained,
        "regularizer": VGGMaxFeatureLoss,
    }
    for name, load in loaders.items():
        try:
            options[name] = options[name] if name in options else load()
        except FileNotFoundError as error:
            problems.append(f"`{name}`: {error}")
    if problems:
        raise FileNotFoundError(
            "the paper's loss needs weights that are not here. With the files it is\n"
            "    LanguageDrivenFusionLoss.paper(\n"
            "        encoder=FrozenCLIP.from_pretrained('ViT-B-32-quickgelu', CLIP_FILE),\n"
            "        regularizer=VGGMaxFeatureLoss(VGG_FILE),\n"
            "    )\n"
            "or, without the VGG file, regularizer=StructureLoss(); and without any, "
            "LanguageDrivenFusionLoss.tiny(), for a first try. What is missing:\n- "
            + "\n- ".join(problems)
        ) from None
    return options
