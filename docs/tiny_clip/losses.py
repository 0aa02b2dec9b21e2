"""The training objectives of the tiny CLIP, on unit embeddings and known truths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .captions import SLICES


def contrastive(
    images: Tensor, texts: Tensor, true: Tensor, false: Tensor, scale: Tensor
) -> Tensor:
    """InfoNCE with many positives; pairs of unknown truth take no part.

    Unit vectors (N, D) and (M, D), booleans (N, M), and the inverse temperature.
    """
    logits = scale * images @ texts.T
    return (_multi_positive(logits, true, false) + _multi_positive(logits.T, true.T, false.T)) / 2


def _multi_positive(logits: Tensor, true: Tensor, false: Tensor) -> Tensor:
    """Mean over the positives of -log p(positive | positive and all negatives of its row)."""
    negatives = logits.masked_fill(~false, -1e4).logsumexp(1, keepdim=True)
    losses = F.softplus(negatives - logits)
    weights = true / true.sum(1, keepdim=True).clamp(min=1)
    return (losses * weights).sum() / true.any(1).sum().clamp(min=1)


def prompt_cross_entropy(
    images: Tensor, prompts: Tensor, possible: Tensor, scale: Tensor, modality_weight: float
) -> Tensor:
    """Classify every attribute by its prompts; partly known images count by what is possible.

    `prompts` (WIDTH, D) has one text for each attribute value, `possible` is (N, WIDTH). Infrared
    against visible has the weight `modality_weight`, the other attributes 1.
    """
    logits = scale * images @ prompts.T
    total = logits.new_zeros(())
    for attribute, columns in SLICES.items():
        allowed = possible[:, columns]
        log_p = logits[:, columns].log_softmax(1).masked_fill(~allowed, -1e4).logsumexp(1)
        known = ~allowed.all(1)
        loss = -(log_p * known).sum() / known.sum().clamp(min=1)
        total = total + loss * (modality_weight if attribute == "modality" else 1.0)
    return total


def step_along(before: Tensor, after: Tensor, text_before: Tensor, text_after: Tensor) -> Tensor:
    """The step between two images (N, D) must go along the step between two texts."""
    along = F.normalize(text_after - text_before, dim=-1)
    return F.softplus(15 * (0.25 - ((after - before) * along).sum(-1))).mean() / 3


def direction_losses(images: Tensor, sources: Tensor, objectives: Tensor, texts: Tensor) -> Tensor:
    """The direction loss that a fusion network will be trained with: (B, K, O) in [0, 2].

    Of fused images (B, K, D), their visible and infrared sources (B, 2, D), objective texts (O, D)
    and the texts for visible and infrared (2, D), all unit vectors.
    """
    image_steps = _direction(images[:, :, None] - sources[:, None])  # (B, K, 2, D)
    text_steps = _direction(objectives[:, None] - texts)  # (O, 2, D)
    return 1 - torch.einsum("bksd,osd->bko", image_steps, text_steps) / 2


def _direction(step: Tensor) -> Tensor:
    return step / (step.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def ranking(losses: Tensor, true: Tensor, false: Tensor, weights: Tensor, margin: float) -> Tensor:
    """Images of which an objective is true must have less direction loss than others.

    `losses`, `true` and `false` are (B, K, O), the weights of the objectives (O,).
    """
    gap = losses[:, :, None] - losses[:, None]  # (B, good, bad, O)
    pairs = (true[:, :, None] & false[:, None]).float()
    penalty = F.softplus(10 * (gap + margin)) / 10
    each = (penalty * pairs).sum((0, 1, 2)) / pairs.sum((0, 1, 2)).clamp(min=1)
    return (each * weights).sum()


def order_between(
    start: Tensor, middle: Tensor, end: Tensor, sign: Tensor, margin: float = 0.1
) -> Tensor:
    """On the way from one image to another the direction loss must fall (or rise) steadily.

    It makes the *gradient* of the direction loss point along changes that a person would call
    sharper, darker, ..., which is all that a fusion network sees of it.
    All are (B, O); `sign` is 1 where the end fulfils the objective, -1 where the start does, 0
    where neither is known.
    """
    rises = torch.stack([middle - start, end - middle])
    penalty = F.softplus(10 * (sign * rises + margin)) / 10
    return (penalty * sign.abs()).sum() / (2 * sign.abs().sum().clamp(min=1))
