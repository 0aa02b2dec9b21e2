"""`LanguageDrivenFusionLoss.paper` and `.tiny`: constructors with matching networks and weights."""

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
    """Alternative constructors of the loss with other defaults."""

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
            options: any keyword argument of the class, to replace a value of the paper.

        Raises:
            TypeError, ValueError: as the class.
            FileNotFoundError: weights are not in the caches and cannot be downloaded.
        """
        # Report a misspelt option before the download, not after it.
        inspect.signature(cls).bind(objective, **options)
        return cls(objective, **_with_the_papers_networks(options))

    @classmethod
    def tiny(
        cls: type[Loss],
        objective: FusionObjective | EmbeddedFusionModel | str | Sequence[str] = FusionObjective(),
        **options: Any,
    ) -> Loss:
        """The loss with the embedded CLIP and suitable weights, without a download.

        For demonstrations and continuous integration; see `FrozenCLIP.tiny`. The regularizer is a
        `StructureLoss`, which does not restrict brightness and contrast. To strengthen or weaken
        the text's effect, scale `direction_weight` and `patch_weight` together.

        The weights come from a search with DenseFuse and this CLIP (docs/results.md); those of the
        paper are too strong for it. `min_patch_entropy` is 5 bits, as few of the small crops that
        it is used with have more than 6.

        Args:
            objective: see the class.
            options: any keyword argument of the class.

        Raises:
            TypeError, ValueError: as the class; or the embedded CLIP's files are damaged.
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
    """`options`, with the paper's encoder and regularizer unless they name others.

    Raises:
        FileNotFoundError: weights are not available; the message names all that are missing.
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
            "the paper's loss needs weights that are not available here. With the files, call\n"
            "    LanguageDrivenFusionLoss.paper(\n"
            "        encoder=FrozenCLIP.from_pretrained('ViT-B-32-quickgelu', CLIP_FILE),\n"
            "        regularizer=VGGMaxFeatureLoss(VGG_FILE),\n"
            "    )\n"
            "or, without the VGG file, pass regularizer=StructureLoss(); for a first try without "
            "any file, call LanguageDrivenFusionLoss.tiny(). Missing:\n- " + "\n- ".join(problems)
        ) from None
    return options
