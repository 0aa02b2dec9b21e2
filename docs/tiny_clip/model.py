"""The tiny CLIP itself: its settings, its texts as tokens, and the folder it is shipped as."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save
from torch import Tensor

from options import atomic_write

from .captions import (
    OBJECTIVES,
    PAPER_INFRARED,
    PAPER_VISIBLE,
    PROMPTS,
    SLICES,
    Caption,
    mask,
    vocabulary,
)
from .degradations import QUALITY_PROMPTS

MEAN, STD = 0.45, 0.25


@dataclass(frozen=True)
class Config:
    """Everything the result depends on, besides the code."""

    steps: int = 800
    batch: int = 16
    captions: int = 96
    learning_rate: float = 2.5e-3
    weight_decay: float = 0.05
    seed: int = 0
    modality_weight: float = 8.0
    paper_weight: float = 5.0
    objective_weight: float = 3.0
    perturbation: float = 0.02
    perturbed: float = 0.3
    embossed: float = 0.5
    ema: float = 0.998
    image_size: int = 96
    embed_dim: int = 128
    vision_layers: int = 1
    vision_width: int = 16
    text_width: int = 48
    text_layers: int = 2
    context: int = 32

    def model_config(self) -> dict[str, Any]:
        """The arguments of `open_clip.model.CLIP`."""
        return {
            "embed_dim": self.embed_dim,
            "vision_cfg": {
                "image_size": self.image_size,
                "layers": [self.vision_layers] * 4,
                "width": self.vision_width,
                "head_width": 64,
            },
            "text_cfg": {
                "context_length": self.context,
                "vocab_size": 49408,
                "width": self.text_width,
                "heads": self.text_width // 16,
                "layers": self.text_layers,
            },
        }


class Texts:
    """All captions as tokens, with what they allow, and where the special ones are.

    Attributes:
        tokens: (T, context) token numbers.
        allowed: (T, WIDTH) boolean.
        prompts: (WIDTH,) rows of the texts that stand for one attribute value each.
        objectives: (O,) rows of the objective texts, the paper's first.
        modalities: (2,) rows of the paper's texts for visible and infrared.
        quality_steps: (Q, 2) for each quality loss, which two of `prompts` it lies between.
    """

    def __init__(self, captions: tuple[Caption, ...], context: int) -> None:
        self.tokens = SimpleTokenizer(context_length=context)([c.text for c in captions])
        self.allowed = torch.stack([mask(caption.asserts) for caption in captions])
        rows = {caption.text: row for row, caption in enumerate(captions)}
        self.prompts = torch.tensor([rows[text] for texts in PROMPTS.values() for text in texts])
        self.objectives = torch.tensor([rows[text] for text in OBJECTIVES])
        self.modalities = torch.tensor([rows[PAPER_VISIBLE], rows[PAPER_INFRARED]])
        starts = {attribute: columns.start for attribute, columns in SLICES.items()}
        self.quality_steps = torch.tensor(
            [
                (starts[a] + before, starts[a] + after)
                for a, before, after in QUALITY_PROMPTS.values()
            ]
        )

    def __len__(self) -> int:
        return len(self.tokens)


def build_model(config: Config, texts: Texts) -> CLIP:
    """A fresh model; rows of the token table that no caption uses are zero and stay zero."""
    arguments = config.model_config()
    model = CLIP(**arguments, quick_gelu=False)
    unused = torch.ones(len(model.token_embedding.weight), dtype=torch.bool)
    unused[texts.tokens.unique()] = False
    with torch.no_grad():
        model.token_embedding.weight[unused] = 0
    model.visual.to(memory_format=torch.channels_last)
    return model


def encode_images(model: CLIP, images: Tensor) -> Tensor:
    """Vectors (..., D), not normalised, of grey images (..., H, W) in [0, 1], of its size."""
    pixels = ((images.flatten(0, -3) - MEAN) / STD)[:, None].expand(-1, 3, -1, -1)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = model.encode_image(pixels.contiguous(memory_format=torch.channels_last))
    return vectors.view(*images.shape[:-2], -1)


def export(model: CLIP, config: Config, captions: tuple[Caption, ...], folder: Path) -> None:
    """Write the folder that open_clip loads as `local-dir:FOLDER`; each file whole."""
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    description = {
        "model_cfg": config.model_config(),
        "preprocess_cfg": {
            "size": [config.image_size, config.image_size],
            "mode": "RGB",
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
            "interpolation": "bilinear",
            "resize_mode": "squash",
        },
    }
    files = {
        "open_clip_model.safetensors": save(state),
        "open_clip_config.json": json.dumps(description, indent=2).encode(),
        "vocabulary.txt": ("\n".join(vocabulary(captions)) + "\n").encode(),
    }
    # What `sha256sum` prints.
    sums = (f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    files["SHA256SUMS"] = "".join(sums).encode()
    for name, content in files.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)
