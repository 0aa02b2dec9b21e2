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

    Args:
        images: (N, D) unit vectors.
        texts: (M, D) unit vectors.
        true, false: (N, M) boolean.
        scale: the inverse temperature.
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

    Args:
        images: (N, D) unit vectors.
        prompts: (WIDTH, D) unit vectors, one text for each attribute value.
        possible: (N, WIDTH) boolean.
        modality_weight: weight of infrared against visible; the other attributes have 1.
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
    """The step from one image to another must go along the step between two texts.

    Args:
        before, after: (N, D) unit vectors of image pairs.
        text_before, text_after: (N, D) or (D,) unit vectors.
    """
    along = F.normalize(text_after - text_before, dim=-1)
    return F.softplus(15 * (0.25 - ((after - before) * along).sum(-1))).mean() / 3


def direction_losses(images: Tensor, sources: Tensor, objectives: Tensor, texts: Tensor) -> Tensor:
    """The direction loss that a fusion network will be trained with.

    Args:
        images: (B, K, D) unit vectors of fused images.
        sources: (B, 2, D) unit vectors of their visible and infrared sources.
        objectives: (O, D) unit vectors of the objective texts.
        texts: (2, D) unit vectors of the texts for visible and infrared.

    Returns:
        (B, K, O), 0 where the image steps go exactly the texts' way, 2 where the opposite way.
    """
    image_steps = _direction(images[:, :, None] - sources[:, None])  # (B, K, 2, D)
    text_steps = _direction(objectives[:, None] - texts)  # (O, 2, D)
    return 1 - torch.einsum("bksd,osd->bko", image_steps, text_steps) / 2


def _direction(step: Tensor) -> Tensor:
    return step / (step.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def ranking(losses: Tensor, true: Tensor, false: Tensor, weights: Tensor, margin: float) -> Tensor:
    """Images of which an objective is true must have less direction loss than others.

    Args:
        losses: (B, K, O) direction losses.
        true, false: (B, K, O) boolean.
        weights: (O,) weight of each objective.
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

    Args:
        start, middle, end: (B, O) direction losses.
        sign: (B, O), 1 where the end fulfils the objective, -1 where the start does, 0 where
            neither is known.
    """
    rises = torch.stack([middle - start, end - middle])
    penalty = F.softplus(10 * (sign * rises + margin)) / 10
    return (penalty * sign.abs()).sum() / (2 * sign.abs().sum().clamp(min=1))
