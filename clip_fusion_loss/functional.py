"""All formulas of the loss, as functions of tensors.

An *embedding* is a unit vector of a CLIP encoder and a *direction* the normalised difference of two
embeddings; both lie along the last axis, of length D. Images are (N, C, H, W) with values in
[0, 1]. Functions raise a TypeError or a ValueError if a tensor has another type or shape than
described; only `total_loss` and `soften_outliers` take any tensors.

Equations and constants are those of Wang, Miao, Zhou, Zhang and Qiao, "Infrared and Visible Image
Fusion with Language-Driven Loss in CLIP Embedding Space", ACM MM 2025 (arXiv 2402.16267), called
"the paper" below. What the paper does not specify is as in its published code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .image_formulas import (
    match_channels,
    patch_entropy,
    random_patch_transforms,
    resize_images,
    sample_patches,
    shrink_images,
    soften_outliers,
)

__all__ = [
    "direction",
    "direction_loss",
    "intensity_gradient_loss",
    "match_channels",
    "max_feature_loss",
    "mean_direction",
    "mean_over_patches",
    "patch_entropy",
    "random_patch_transforms",
    "resize_images",
    "sample_patches",
    "shrink_images",
    "similarity_loss",
    "soften_outliers",
    "structure_loss",
    "total_loss",
]

# Smallest length by which a difference of unit vectors is divided. Real fused images differ from
# their sources by 0.1 or more, so they are not affected. Where fused == source the gradient stays
# below 1 / DIRECTION_EPS instead of becoming NaN.
DIRECTION_EPS = 1e-3

# Smallest root mean square by which image gradients and contrasts are divided: a quarter of an
# 8-bit grey level. It keeps the gradient finite for constant images.
CONSTANT_RMS = 1e-3

# Side of the windows of `structure_loss` whose means are compared, in pixels.
LAYOUT_WINDOW = 16


def direction(start: Tensor, end: Tensor) -> Tensor:
    """Unit vector from `start` to `end`: ``(end - start) / max(|end - start|, 1e-3)``.

    Args:
        start: (..., D) embeddings.
        end: (..., D) embeddings, broadcast against `start`.

    Returns:
        (..., D) directions; the zero vector, with a finite gradient, where both are equal.
    """
    checks.check_alike({"start": start, "end": end}, "(..., D)")
    return F.normalize(end - start, dim=-1, eps=DIRECTION_EPS)


def direction_loss(
    embedding: Tensor,
    visible_embedding: Tensor,
    infrared_embedding: Tensor,
    visible_direction: Tensor,
    infrared_direction: Tensor,
) -> Tensor:
    """Mean cosine distance between image directions and text directions, from both sources.

        1/2 (1 - cos(dir(v_v, e), D_v)) + 1/2 (1 - cos(dir(v_r, e), D_r))

    Args:
        embedding: (..., D) embeddings e of fused images or of their patches.
        visible_embedding: (..., D) embeddings v_v of the whole visible images.
        infrared_embedding: (..., D) embeddings v_r of the whole infrared images.
        visible_direction: (D,) text direction D_v from the visible image's text to the fused
            image's, or (..., D) with one per embedding.
        infrared_direction: likewise D_r, from the infrared image's text.

    Returns:
        (...) losses in [0, 2], differentiable in all arguments.
    """
    tensors = {
        "embedding": embedding,
        "visible_embedding": visible_embedding,
        "infrared_embedding": infrared_embedding,
        "visible_direction": visible_direction,
        "infrared_direction": infrared_direction,
    }
    checks.check_alike(tensors, "(..., D)")
    # All vectors are unit, so cos is the plain inner product.
    from_visible = (direction(visible_embedding, embedding) * visible_direction).sum(-1)
    from_infrared = (direction(infrared_embedding, embedding) * infrared_direction).sum(-1)
    return 1 - 0.5 * (from_visible + from_infrared)


def mean_direction(visible_direction: Tensor, infrared_direction: Tensor) -> Tensor:
    """Normalised mean of both text directions: ``(D_v + D_r) / max(|D_v + D_r|, 1e-3)``.

    If the fused image has the same direction from both sources, `direction_loss` is smallest for
    this one.

    Args:
        visible_direction: (..., D) text directions D_v.
        infrared_direction: (..., D) text directions D_r.

    Returns:
        (..., D) unit vectors; zero where both directions are zero or opposite.
    """
    directions = {"visible_direction": visible_direction, "infrared_direction": infrared_direction}
    checks.check_alike(directions, "(..., D)")
    return F.normalize(visible_direction + infrared_direction, dim=-1, eps=DIRECTION_EPS)


def similarity_loss(
    embedding: Tensor, visible_embedding: Tensor, infrared_embedding: Tensor
) -> Tensor:
    """Mean cosine distance to both sources: ``1 - (cos(e, v_v) + cos(e, v_r)) / 2``.

    Args:
        embedding: (..., D) embeddings of the fused images.
        visible_embedding: (..., D) embeddings of the visible images.
        infrared_embedding: (..., D) embeddings of the infrared images.

    Returns:
        (...) losses in [0, 2].
    """
    tensors = {
        "embedding": embedding,
        "visible_embedding": visible_embedding,
        "infrared_embedding": infrared_embedding,
    }
    checks.check_alike(tensors, "(..., D)")
    return 1 - 0.5 * (embedding * (visible_embedding + infrared_embedding)).sum(-1)


def mean_over_patches(sums: Tensor, kept: Tensor, reduction: str = "all") -> Tensor:
    """Mean loss of each sample's patches.

    Args:
        sums: (B,) sums of the losses of the patches that passed the entropy filter.
        kept: (B, N) boolean, True for patches that passed.
        reduction: "all" divides by N, so dropped patches count as zero (the paper's code);
            "kept" divides by the number of kept patches.

    Returns:
        (B,) means; zero for a sample without kept patches.
    """
    checks.check_axes("sums", sums, "(B,)")
    checks.check_axes("kept", kept, f"({len(sums)}, N)", boolean=True)
    checks.check_choice("reduction", reduction, ("all", "kept"))
    if reduction == "all":
        return sums / kept.shape[1]
    return sums / kept.sum(1).clamp(min=1)


def total_loss(terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum of the terms: ``sum_i weights[i] * terms[i]``.

    Args:
        terms: tensors of one shape, at least one.
        weights: one per term; the paper's are 2, 10, 6 and 10 for the direction, patch, similarity
            and perceptual terms.

    Returns:
        A tensor of the shape of the terms.

    Raises:
        ValueError: there are no terms, or not as many weights as terms.
    """
    _check_lengths(terms=terms, weights=weights)
    return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum(0)


def max_feature_loss(
    fused: Sequence[Tensor], visible: Sequence[Tensor], infrared: Sequence[Tensor]
) -> Tensor:
    """The paper's perceptual term: ``sum_l MSE(phi_l(fused), max(phi_l(vis), phi_l(ir)))``.

    Args:
        fused: feature maps phi_l of the fused images, (B, C_l, H_l, W_l), at least one layer.
        visible: like `fused`.
        infrared: like `fused`.

    Returns:
        (B,) losses.
    """
    _check_lengths(fused=fused, visible=visible, infrared=infrared)
    layers = [
        _max_feature_distance(f, v, r) for f, v, r in zip(fused, visible, infrared, strict=True)
    ]
    return torch.stack(layers).sum(0)


def _max_feature_distance(fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
    features = {"fused": fused, "visible": visible, "infrared": infrared}
    checks.check_alike(features, "(B, C, H, W)")
    return (fused - torch.maximum(visible, infrared)).square().flatten(1).mean(1)


def _check_lengths(**sequences: Sequence[object]) -> None:
    (first, reference), *others = sequences.items()
    if not reference:
        raise ValueError(f"`{first}` must have at least one entry, got none")
    for name, sequence in others:
        if len(sequence) != len(reference):
            raise ValueError(
                f"`{name}` must have as many entries as `{first}`, {len(reference)}, got "
                f"{len(sequence)}; pass one for each"
            )


def intensity_gradient_loss(
    fused: Tensor, visible: Tensor, infrared: Tensor, gradient_weight: float = 2.0
) -> Tensor:
    """L1 distance to the maximum intensity and to the stronger gradient of both sources.

        mean |f - max(v, r)| + gradient_weight * mean |grad f - g|

    where g is, at each pixel and axis, the source gradient of larger magnitude *with its sign*:
    with absolute gradients the network could invert contrast. `gradient_weight` counts each axis
    on its own.

    Args:
        fused: (B, C, H, W) images in [0, 1], H and W at least 2.
        visible: like `fused`.
        infrared: like `fused`.
        gradient_weight: weight of the gradient part, at least 0.

    Returns:
        (B,) losses, at least 0.
    """
    _check_images_with_gradients(fused, visible, infrared)
    checks.check_number("gradient_weight", gradient_weight)
    loss = _mean_abs(fused - torch.maximum(visible, infrared))
    for axis in (-1, -2):
        stronger = _stronger(visible.diff(dim=axis), infrared.diff(dim=axis))
        loss = loss + gradient_weight * _mean_abs(fused.diff(dim=axis) - stronger)
    return loss


def structure_loss(
    fused: Tensor,
    visible: Tensor,
    infrared: Tensor,
    *,
    window: int = 9,
    flat_energy: float = 0.05,
    layout_weight: float = 1.0,
) -> Tensor:
    """Compare position and orientation of edges, but not brightness and contrast.

        edges + layout_weight * layout

    *Edges* compares two gradient fields G, each divided by its root mean square over the image.
    G_f is that of the fused image; G_s has, at each pixel and axis, the source gradient of larger
    magnitude with its sign. In every window w, with e the energy that counts as flat,

        ncc_w = (mean_w(G_f G_s) + e) / sqrt((mean_w(G_f^2) + e) (mean_w(G_s^2) + e))
        edges = sum_w a_w (1 - ncc_w) / sum_w a_w,    a_w = sqrt(mean_w(G_s^2) + e)

    Where the sources have edges, e is negligible and a local change of contrast is not penalised.
    Where the sources are flat, any detail of the fused image is penalised, such as noise and
    relief.

    *Layout* compares means F of the fused image and M of ``max(visible, infrared)`` over 16 x 16
    windows with a stride of 8:

        layout = 1/2 |unit(F - mean F) - unit(M - mean M)|^2 = 1 - cos(F - mean F, M - mean M)

    Neither part changes if the fused image is multiplied by a positive number or a constant is
    added. In plain PyTorch, for one sample:

        G = torch.stack([x.diff(dim=-1)[:, :-1], x.diff(dim=-2)[:, :, :-1]])  # x: (C, H, W)
        G = G / G.square().mean().sqrt()

    Args:
        fused: (B, C, H, W) images in [0, 1], H and W at least 2.
        visible: like `fused`.
        infrared: like `fused`.
        window: side of the windows w in pixels; larger than the image counts as the image's.
        flat_energy: e relative to the mean gradient energy of the image, which is 1; at least 1e-6.
        layout_weight: weight of the layout part, at least 0.

    Returns:
        (B,) losses, 0 to ``2 + 2 * layout_weight``; finite for constant images too.
    """
    _check_images_with_gradients(fused, visible, infrared)
    checks.check_number("window", window, minimum=1, whole=True)
    checks.check_number("flat_energy", flat_energy, minimum=1e-6)
    checks.check_number("layout_weight", layout_weight)
    field = _unit_rms(_gradient_field(fused))
    wanted = _unit_rms(_stronger(_gradient_field(visible), _gradient_field(infrared)))
    side = [min(window, length) for length in field.shape[2:]]

    def energy(first: Tensor, second: Tensor) -> Tensor:
        return F.avg_pool2d((first * second).mean(1, keepdim=True), side, stride=1) + flat_energy

    amplitude = energy(wanted, wanted).sqrt()
    ncc = energy(field, wanted) / (energy(field, field).sqrt() * amplitude)
    edges = ((1 - ncc) * amplitude).flatten(1).sum(1) / amplitude.flatten(1).sum(1)
    layouts = [_layout(image) for image in (fused, torch.maximum(visible, infrared))]
    # Half the squared distance of unit vectors is 1 - cos; unlike that, it is 0 where both images
    # are constant.
    layout = 0.5 * (layouts[0] - layouts[1]).square().sum(1)
    return edges + layout_weight * layout


def _check_images_with_gradients(fused: Tensor, visible: Tensor, infrared: Tensor) -> None:
    images = {"fused": fused, "visible": visible, "infrared": infrared}
    checks.check_alike(images, "(B, C, H, W)")
    checks.check_sides("fused", fused, 2)


def _stronger(first: Tensor, second: Tensor) -> Tensor:
    return torch.where(first.abs() >= second.abs(), first, second)


def _gradient_field(images: Tensor) -> Tensor:
    """Forward differences along both axes, (B, C, H, W) -> (B, 2 C, H - 1, W - 1)."""
    return torch.cat([images.diff(dim=-1)[..., :-1, :], images.diff(dim=-2)[..., :-1]], 1)


def _unit_rms(fields: Tensor) -> Tensor:
    flat = fields.flatten(1)
    size = math.sqrt(flat.shape[1])
    return (F.normalize(flat, dim=1, eps=CONSTANT_RMS * size) * size).view_as(fields)


def _layout(images: Tensor) -> Tensor:
    side = [min(LAYOUT_WINDOW, length) for length in images.shape[2:]]
    means = F.avg_pool2d(images, side, stride=LAYOUT_WINDOW // 2).flatten(1)
    means = means - means.mean(1, keepdim=True)
    return F.normalize(means, dim=1, eps=CONSTANT_RMS * math.sqrt(means.shape[1]))


def _mean_abs(images: Tensor) -> Tensor:
    return images.abs().flatten(1).mean(1)
