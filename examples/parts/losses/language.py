"""Build the language-driven loss with the CLIP of --encoder."""

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
    f"tiny, which comes with the package; MODEL/TAG with names of open_clip, such as "
    f"{CHECKPOINT_MODEL}/openai, downloaded once; MODEL=FILE, such as RN50=RN50.pt, with weights "
    f"of open_clip, OpenAI or transformers; FILE with weights of {CHECKPOINT_MODEL}; FOLDER of "
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
    """The loss with the CLIP that `encoder` names.

    Args:
        encoder: see `load_clip`.
        generator, objective: options of the loss.
        regularizer: one of `REGULARIZERS`.
        vgg19: weights of the regularizer vgg; None downloads them.
        options: further options of `LanguageDrivenFusionLoss`; those that are None have their
            default for this encoder.

    Raises:
        OSError, ValueError: there is no such model, or its weights are not available.
    """
    given = {name: value for name, value in options.items() if value is not None}
    tiny = encoder == "tiny"
    if not tiny:
        given["encoder"] = load_clip(encoder)
    if regularizer == "vgg":
        given["regularizer"] = VGGMaxFeatureLoss(vgg19)
    elif not (tiny and regularizer == "structure"):  # `tiny()` has a tuned one
        given["regularizer"] = REGULARIZERS[regularizer]()
    build = LanguageDrivenFusionLoss.tiny if tiny else LanguageDrivenFusionLoss
    return build(objective, generator=generator, **given)


def load_clip(name: str) -> FrozenCLIP:
    """The CLIP with a name as in `ENCODERS`; raises as `build_criterion`."""
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
