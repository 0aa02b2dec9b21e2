"""What the tiny CLIP understands of real infrared-visible pairs, zero-shot.

    cd docs && python -m tiny_clip.evaluate --pairs DIR

reads `DIR/vi/NAME` and `DIR/ir/NAME` and prints three tables: whether a degraded image is told
from its original, whether infrared is told from visible, and whether the direction loss that a
fusion network would be trained with prefers a good fusion to bad ones.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip_fusion_loss import EmbeddedFusionModel, FrozenCLIP, FusionObjective
from clip_fusion_loss.functional import resize_images

from .captions import PAPER_FUSED
from .degradations import gaussian_blur

Table = dict[str, dict[str, float]]

# Operation -> the text that must describe the original better than before, and the degraded one.
_QUALITY_TEXTS = {
    "blur": ("a sharp image", "a blurry image"),
    "noise": ("a noise free image", "a noisy image"),
    "low contrast": ("a normal contrast image", "a low contrast image"),
    "dark": ("a well exposed image", "a dark image"),
    "haze": ("a haze free image", "a hazy image"),
}
_PROMPTS = (PAPER_FUSED, "a blurry dark image")


def load_pairs(folder: Path) -> list[tuple[Tensor, Tensor]]:
    """Grey `(visible, infrared)` pairs, each (1, H, W) in [0, 1], in the order of their names."""
    names = sorted(path.name for path in (folder / "vi").iterdir())
    return [(_read(folder / "vi" / name), _read(folder / "ir" / name)) for name in names]


def _read(path: Path) -> Tensor:
    grey = np.asarray(Image.open(path).convert("L"), np.float32) / 255
    return torch.from_numpy(grey)[None]


def degradations() -> dict[str, Callable[[Tensor], Tensor]]:
    """Fixed, clearly visible losses of quality for images (N, 1, 96, 96)."""
    noise = torch.Generator().manual_seed(1)
    return {
        "blur": lambda x: _blur(x, 1.6),
        "noise": lambda x: x + 0.1 * torch.randn(x.shape, generator=noise),
        "low contrast": lambda x: 0.5 + 0.35 * (x - 0.5),
        "dark": lambda x: 0.35 * x,
        "haze": lambda x: 0.45 * x + 0.55 * 0.85,
    }


def fusions(visible: Tensor, infrared: Tensor) -> dict[str, Tensor]:
    """A good fusion of sources (N, 1, 96, 96) and what it must be preferred to.

    Good: at each place the brighter source's base, and the stronger source's detail, signed and
    slightly amplified. The others are its ruins, and the plain average.
    """
    noise = torch.Generator().manual_seed(2)
    bases = _blur(visible, 3.0), _blur(infrared, 3.0)
    details = visible - bases[0], infrared - bases[1]
    detail = torch.where(details[0].abs() > details[1].abs(), *details)
    good = (0.5 * (torch.maximum(*bases) + sum(bases) / 2) + 1.2 * detail).clamp(0, 1)
    down, right = torch.gradient(good, dim=(-2, -1))
    mean = good.mean((-1, -2), keepdim=True)
    ruins = {
        "average": (visible + infrared) / 2,
        "harsh contrast": 0.5 + 2.5 * (good - mean),
        "over-sharpened": good + 3 * (good - _blur(good, 1.0)),
        "embossed": 0.5 + 3 * (down + right),
        "noisy": good + 0.12 * torch.randn(good.shape, generator=noise),
        "posterised": (3 * good).round() / 3,
        "negative": 1 - good,
        "halos": good + 1.8 * (good - _blur(good, 3.5)),
        "blurry dark": 0.4 * _blur(good, 1.6),
    }
    return {"good": good, **{name: image.clamp(0, 1) for name, image in ruins.items()}}


def _blur(images: Tensor, sigma: float) -> Tensor:
    return gaussian_blur(images, torch.full((len(images), 1, 1, 1), sigma))


@torch.no_grad()
def quality_table(encoder: FrozenCLIP, visible: Tensor, infrared: Tensor) -> Table:
    """Fraction of images whose degraded version ranks below the original, by source."""
    texts = encoder.encode_text([text for pair in _QUALITY_TEXTS.values() for text in pair])
    good_fusion = fusions(visible, infrared)["good"]
    kinds = {"visible": visible, "infrared": infrared, "fused": good_fusion}
    table: Table = {}
    for row, (name, degrade) in enumerate(degradations().items()):
        towards_good = texts[2 * row] - texts[2 * row + 1]
        table[name] = {}
        for kind, images in kinds.items():
            before = encoder.encode_image(images) @ towards_good
            after = encoder.encode_image(degrade(images).clamp(0, 1)) @ towards_good
            table[name][kind] = (after < before).float().mean().item()
    return table


@torch.no_grad()
def modality_table(encoder: FrozenCLIP, visible: Tensor, infrared: Tensor) -> Table:
    """Infrared against visible by the paper's two texts.

    `accuracy` decides for each image alone, `AUC` needs no threshold, `paired` compares the two
    images of a pair.
    """
    texts = encoder.encode_text([FusionObjective().visible[0], FusionObjective().infrared[0]])
    of_visible, of_infrared = (
        encoder.encode_image(images) @ (texts[1] - texts[0]) for images in (visible, infrared)
    )
    right = {
        "accuracy": torch.cat([of_visible < 0, of_infrared > 0]),
        "visible right": of_visible < 0,
        "infrared right": of_infrared > 0,
        "AUC": of_infrared[:, None] > of_visible,
        "paired": of_infrared > of_visible,
    }
    return {"infrared vs visible": {k: v.float().mean().item() for k, v in right.items()}}


@torch.no_grad()
def ranking_table(encoder: FrozenCLIP, visible: Tensor, infrared: Tensor, prompt: str) -> Table:
    """Mean direction loss of each fusion, and how often the good one has less."""
    objective = EmbeddedFusionModel(FusionObjective(fused=prompt), encoder)
    sources = encoder.encode_image(visible), encoder.encode_image(infrared)
    losses = {
        name: objective(encoder.encode_image(images), *sources)
        for name, images in fusions(visible, infrared).items()
    }
    good = losses["good"]
    return {
        name: {"loss": loss.mean().item(), "good is less": (good < loss).float().mean().item()}
        for name, loss in sorted(losses.items(), key=lambda item: item[1].mean().item())
    }


def evaluate(encoder: FrozenCLIP, pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Table]:
    """All tables, on whole images squashed to the model's input size."""
    visible, infrared = (
        torch.cat([resize_images(pair[side][None], encoder.image_size) for pair in pairs])
        for side in (0, 1)
    )
    tables = {
        "degraded below original": quality_table(encoder, visible, infrared),
        "modality": modality_table(encoder, visible, infrared),
    }
    for prompt in _PROMPTS:
        tables[f'direction loss, "{prompt}"'] = ranking_table(encoder, visible, infrared, prompt)
    return tables


def _print(title: str, table: Table) -> None:
    columns = list(next(iter(table.values())))
    print(f"\n{title}\n{'':22}" + "".join(f"{column:>16}" for column in columns))
    for name, row in table.items():
        print(f"{name:22}" + "".join(f"{row[column]:16.3f}" for column in columns))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tiny_clip.evaluate", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--pairs", type=Path, required=True, help="folder with vi/ and ir/")
    parser.add_argument("--model", type=Path, help="folder of weights (default: the shipped ones)")
    arguments = parser.parse_args()
    model = arguments.model
    encoder = FrozenCLIP.from_pretrained(f"local-dir:{model}") if model else FrozenCLIP.tiny()
    pairs = load_pairs(arguments.pairs)
    tables = evaluate(encoder, pairs)
    print(f"{len(pairs)} pairs of {arguments.pairs}; standard error of a fraction at most "
          f"{0.5 / math.sqrt(len(pairs)):.2f}")  # fmt: skip
    for title, table in tables.items():
        _print(title, table)


if __name__ == "__main__":
    main()
