"""`LanguageDrivenFusionLoss.paper` and `.tiny`: which networks and weights go together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from .encoder import FrozenCLIP
from .fusion_model import EmbeddedFusionModel
from .objective import FusionObjective
from .regularizers import StructureLoss, VGGMaxFeatureLoss

__all__ = ["Presets"]

Loss = TypeVar("Loss", bound="Presets")


class Presets:
    """Constructors of a loss with other defaults than its own."""

    if TYPE_CHECKING:

        def __init__(self, *arguments: Any, **options: Any) -> None: ...

    @classmethod
    def paper(
        cls: type[Loss],
        objective: FusionObjective | EmbeddedFusionModel | str | Sequence[str] = FusionObjective(),
        **options: Any,
    ) -> Loss:
        """The paper's loss: CLIP ViT-B/32, VGG-19 regularizer, weights 2 / 10 / 6 / 10.

        Args:
            objective: see the class.
            options: any keyword of the class, to depart from the paper in just that.

        Raises:
            FileNotFoundError: weights that are neither in the caches nor within reach.
        """
        # A misspelt option shall not come to light after a download.
        inspect.signature(cls).bind(objective, **options)
        return cls(objective, **_with_the_papers_networks(options))

    @classmethod
    def tiny(
        cls: type[Loss],
        objective: FusionObjective | EmbeddedFusionModel | str | Sequence[str] = FusionObjective(),
        **options: Any,
    ) -> Loss:
        """The loss with the embedded CLIP and weights that suit it: no download, no network.

        For demonstrations and continuous integration; see `FrozenCLIP.tiny`. The regularizer is a
        `StructureLoss`, which leaves brightness and contrast to the sentence. For more or less
        language, turn `direction_weight` and `patch_weight` up or down together. The weights come
        from a search with DenseFuse and this very model (docs/results.md): it has its own scale,
        and the paper's weights over-drive it. On its small crops 5 bits of entropy keep most
        patches, 6 few.

        Args:
            objective: see the class.
            options: any keyword of the class.
        """
        if "encoder" not in options:
            options["encoder"] = FrozenCLIP.tiny()
        defaults: dict[str, Any] = {
            "direction_weight": 3.2,
            "patch_weight": 1.0,
            "similarity_weight": 5.0,
            "regularizer": StructureLoss(window=11, flat_energy=0.12, layout_weight=2.0),
            "regularizer_weight": 2.4,
            "num_patches": 4,
            "min_patch_entropy": 5.0,
            "patch_reduction": "kept",
        }
        return cls(objective, **(defaults | options))


def _with_the_papers_networks(options: dict[str, Any]) -> dict[str, Any]:
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
