"""The language-driven loss with the CLIP that a user names."""

from pathlib import Path
from typing import Any

import torch

from clip_fusion_loss import (
    FrozenCLIP,
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
    StructureLoss,
    VGGMaxFeatureLoss,
)

REGULARIZERS = {
    "vgg": VGGMaxFeatureLoss,
    "structure": StructureLoss,
    "intensity": IntensityGradientLoss,
    "none": lambda: None,
}
CHECKPOINT_MODEL = "ViT-B-32-quickgelu"
ENCODERS = (
    f"tiny, which comes with the package; MODEL/TAG as open_clip names them, say "
    f"{CHECKPOINT_MODEL}/openai, downloaded once; MODEL=FILE, say RN50=RN50.pt, with weights of "
    f"open_clip, OpenAI or transformers; a FILE with those of {CHECKPOINT_MODEL}; a FOLDER of "
    "open_clip or of a transformers CLIPModel; hf-hub:ORG/REPO"
)


def build_criterion(
    encoder: str,
    generator: torch.Generator,
    objective: FusionObjective = FusionObjective(),
    *,
    regularizer: str = "structure",
    vgg19: Path | None = None,
    **options: Any,
) -> LanguageDrivenFusionLoss:
    """The loss with the CLIP that `encoder` names, drawing its patches from `generator`.

    Args:
        encoder: what `load_clip` takes.
        generator, objective: of the loss.
        regularizer: one of `REGULARIZERS`.
        vgg19: weights of the regularizer vgg; None downloads them.
        options: more of `LanguageDrivenFusionLoss`; None leaves what suits the encoder.

    Raises:
        OSError, ValueError: if there is no such model or its weights cannot be had.
    """
    given = {name: value for name, value in options.items() if value is not None}
    tiny = encoder == "tiny"
    if not tiny:
        given["encoder"] = load_clip(encoder)
    if regularizer == "vgg":
        given["regularizer"] = VGGMaxFeatureLoss(vgg19)
    elif not (tiny and regularizer == "structure"):  # tiny has one that suits it
        given["regularizer"] = REGULARIZERS[regularizer]()
    build = LanguageDrivenFusionLoss.tiny if tiny else LanguageDrivenFusionLoss
    return build(objective, generator=generator, **given)


def load_clip(name: str) -> FrozenCLIP:
    """The CLIP of that name, as `ENCODERS` says; raises likewise."""
    if name == "tiny":
        return FrozenCLIP.tiny()
    if name.startswith(("local-dir:", "hf-hub:")) or Path(name).is_dir():
        return FrozenCLIP.from_pretrained(name)
    if Path(name).is_file():
        return FrozenCLIP.from_pretrained(CHECKPOINT_MODEL, Path(name))
    model, equals, path = name.partition("=")
    if equals:
        return FrozenCLIP.from_pretrained(model, Path(path))
    model, slash, tag = name.rpartition("/")
    if not slash:
        raise ValueError(f"--encoder must be {ENCODERS}, got {name}")
    try:
        return FrozenCLIP.from_pretrained(model, tag)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}\n(here: --encoder MODEL=FILE or FOLDER)") from error
