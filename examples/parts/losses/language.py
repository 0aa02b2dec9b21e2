"""The language-driven loss with the CLIP that a user names."""

from pathlib import Path

import torch

from clip_fusion_loss import FrozenCLIP, LanguageDrivenFusionLoss, StructureLoss

#: The paper draws 32 patches an image; fewer make a step cheaper, and noisier.
PATCHES = 8
CHECKPOINT_MODEL = "ViT-B-32-quickgelu"
ENCODERS = (
    f"tiny, which comes with the package; MODEL/TAG as open_clip names them, say "
    f"{CHECKPOINT_MODEL}/openai, downloaded once; MODEL=FILE, say RN50=RN50.pt, with weights of "
    f"open_clip, OpenAI or transformers; a FILE with those of {CHECKPOINT_MODEL}; a FOLDER of "
    "open_clip or of a transformers CLIPModel; hf-hub:ORG/REPO"
)


def build_criterion(encoder: str, generator: torch.Generator) -> LanguageDrivenFusionLoss:
    """The loss with the CLIP that `encoder` names, drawing its patches from `generator`.

    `encoder`: tiny or what `load_clip` takes.

    Raises:
        OSError, ValueError: if there is no such model or its weights cannot be had.
    """
    if encoder == "tiny":
        return LanguageDrivenFusionLoss.tiny(generator=generator)
    return LanguageDrivenFusionLoss(
        encoder=load_clip(encoder),
        regularizer=StructureLoss(),
        num_patches=PATCHES,
        generator=generator,
    )


def load_clip(name: str) -> FrozenCLIP:
    """The CLIP of that name, as `ENCODERS` says; raises likewise."""
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
