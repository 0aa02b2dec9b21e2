"""All formulas of the loss, as functions of tensors.

An *embedding* is a unit vector of a CLIP encoder and a *direction* the normalised difference of two
embeddings; both lie along the last axis, of length D. Images are (N, C, H, W) with values in
[0, 1]. Nothing is checked here: a direct call with wrong shapes has PyTorch's own errors.

"The paper" is Wang et al., ACM MM 2025 (arXiv 2402.16267), with its published code. Formulas and
constants that do not name it are our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "direction", "direction_loss", "exponential_direction_loss", "intensity_gradient_loss",
    "match_channels", "max_feature_loss", "mean_direction", "mean_over_patches", "patch_entropy",
    "patch_labels", "random_patch_transforms", "resize_images", "sample_patches", "shrink_images",
    "similarity_loss", "soften_outliers", "structure_loss", "total_loss",
]  # fmt: skip

# Smallest length by which a difference of unit vectors is divided. Real fused images differ from
# their sources by 0.1 or more. Where fused == source it keeps the gradient finite.
DIRECTION_EPS = 1e-3

# Smallest root mean square by which image gradients and contrasts are divided: a quarter of an
# 8-bit grey level. It keeps the gradient finite for constant images.
CONSTANT_RMS = 1e-3

# Side of the windows of `structure_loss` whose means are compared, in pixels.
LAYOUT_WINDOW = 16

# Of `structure_loss`, found by trial: the side of the windows in which energy is measured, the part
# of them that holds noise alone, and how far edges must be above it.
NOISE_WINDOW = 7
NOISE_QUANTILE = 0.1
NOISE_FACTOR = 4

# Samples of a label map along each side of a patch: 0.1 % of the patch each.
LABEL_SAMPLES = 32

# ITU-R BT.601 luma, as usual in infrared-visible fusion.
LUMA = (0.299, 0.587, 0.114)


def direction(start: Tensor, end: Tensor) -> Tensor:
    """Unit vector from `start` to `end`: ``(end - start) / max(|end - start|, 1e-3)``.

    Both are (..., D) embeddings. The zero vector, with a finite gradient, where they are equal.
    """
    return F.normalize(end - start, dim=-1, eps=DIRECTION_EPS)


def direction_loss(
    embedding: Tensor, visible_embedding: Tensor, infrared_embedding: Tensor,
    visible_direction: Tensor, infrared_direction: Tensor, weight: Tensor | float = 1.0,
    counted: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Mean cosine distance between image directions and text directions, from both sources.

        1/2 (1 - cos(dir(v_v, e), D_v)) + 1/2 (1 - cos(dir(v_r, e), D_r))

    Embeddings are (..., D): e of fused images or their patches, v_v and v_r of whole sources. D_v
    and D_r are the text directions, (D,), or (..., D). Returns (...) losses in [0, 2].

    Several texts cost no more. The sum over texts k with weights w_k, in which an opposite has a
    negative weight and counts as ``|w_k| (1 + cos)``, is the same formula with
    ``D = sum_k w_k D_k`` and, in place of both 1, `weight` ``= sum_k |w_k|``, a number or (...).
    `counted`, (..., 2), is 0 where the visible or the infrared summand does not count.
    """
    # Embeddings' directions and D_k are unit, so cos is the plain inner product.
    from_visible = (direction(visible_embedding, embedding) * visible_direction).sum(-1)
    from_infrared = (direction(infrared_embedding, embedding) * infrared_direction).sum(-1)
    if counted is None:
        return weight - 0.5 * (from_visible + from_infrared)
    summands = torch.stack([weight - from_visible, weight - from_infrared], -1)
    return 0.5 * (counted * summands).sum(-1)


def exponential_direction_loss(
    embedding: Tensor, visible_embedding: Tensor, infrared_embedding: Tensor,
    visible_directions: Tensor, infrared_directions: Tensor, weights: Tensor,
    counted: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``sum_k |w_k| (exp(loss_k) - 1)``, with the `direction_loss` of each of K texts (AutoFuse).

    Directions are (K, D), or (..., K, D), and weights (K,), or (..., K); of an opposite, which has
    a negative weight, ``loss_k`` is that of the reversed directions. The others are as above.
    """
    e, v, r = (x.unsqueeze(-2) for x in (embedding, visible_embedding, infrared_embedding))
    signs = weights.sign()[..., None]
    counted = None if counted is None else counted.unsqueeze(-2)
    losses = direction_loss(
        e, v, r, signs * visible_directions, signs * infrared_directions, counted=counted
    )
    return (weights.abs() * losses.expm1()).sum(-1)


def mean_direction(visible_direction: Tensor, infrared_direction: Tensor) -> Tensor:
    """Normalised sum of both (..., D) text directions: ``(D_v + D_r) / max(|D_v + D_r|, 1e-3)``.

    Of all directions that are the same from both sources, `direction_loss` is smallest for it.
    """
    return F.normalize(visible_direction + infrared_direction, dim=-1, eps=DIRECTION_EPS)


def similarity_loss(
    embedding: Tensor, visible_embedding: Tensor, infrared_embedding: Tensor
) -> Tensor:
    """Of (..., D) embeddings, ``1 - (cos(e, v_v) + cos(e, v_r)) / 2``: (...) losses in [0, 2]."""
    return 1 - 0.5 * (embedding * (visible_embedding + infrared_embedding)).sum(-1)


def mean_over_patches(sums: Tensor, kept: Tensor, reduction: str = "all") -> Tensor:
    """(B,) mean losses of each sample's patches, from (B,) sums over those that passed the filter.

    `kept` is (B, N), True for patches that passed. "all" divides by N, so that dropped patches
    count as zero (the paper's code); "kept" divides by the number of kept ones.
    """
    return sums / (kept.shape[1] if reduction == "all" else kept.sum(1).clamp(min=1))


def total_loss(terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """``sum_i weights[i] * terms[i]``; terms are tensors of one shape.

    The paper's weights of the direction, patch, similarity and perceptual terms: 2, 10, 6 and 10.
    """
    return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum(0)


def max_feature_loss(
    fused: Sequence[Tensor], visible: Sequence[Tensor], infrared: Sequence[Tensor],
    weights: Sequence[float] | None = None,
) -> Tensor:  # fmt: skip
    """The paper's perceptual term: ``sum_l w_l MSE(phi_l(fused), max(phi_l(vis), phi_l(ir)))``.

    The first three hold feature maps phi_l of one image, (B, C_l, H_l, W_l); `weights` w_l are 1 by
    default. Returns (B,) losses.
    """
    layers = [
        (f - torch.maximum(v, r)).square().flatten(1).mean(1)
        for f, v, r in zip(fused, visible, infrared, strict=True)
    ]
    return total_loss(layers, weights or [1.0] * len(layers))


def intensity_gradient_loss(
    fused: Tensor, visible: Tensor, infrared: Tensor, gradient_weight: float = 2.0
) -> Tensor:
    """L1 distance to the maximum intensity and to the stronger gradient of both sources.

        mean |f - max(v, r)| + gradient_weight * mean |grad f - g|

    where g is, at each pixel and axis, the source gradient of larger magnitude *with its sign*:
    with absolute gradients the network could invert contrast. `gradient_weight` counts each axis
    on its own. Images are (B, C, H, W) in [0, 1], H and W at least 2; returns (B,) losses.
    """
    loss = _mean_abs(fused - torch.maximum(visible, infrared))
    for axis in (-1, -2):
        stronger = _stronger(visible.diff(dim=axis), infrared.diff(dim=axis))
        loss = loss + gradient_weight * _mean_abs(fused.diff(dim=axis) - stronger)
    return loss


def structure_loss(
    fused: Tensor, visible: Tensor, infrared: Tensor, *,
    window: int = 9, flat_energy: float = 0.05, layout_weight: float = 1.0,
    gradient_weight: float = 0.0, above_noise: bool = False,
) -> Tensor:  # fmt: skip
    """Compare position and orientation of edges, but not brightness and contrast.

        edges + layout_weight * layout + gradient_weight * gradient

    *Edges* compares two gradient fields G, each divided by its root mean square over the image.
    G_f is that of the fused image; G_s has, at each pixel and axis, the source gradient of larger
    magnitude with its sign. In every window w, with e the energy that counts as flat,

        ncc_w = (mean_w(G_f G_s) + e) / sqrt((mean_w(G_f^2) + e) (mean_w(G_s^2) + e))
        edges = sum_w a_w (1 - ncc_w) / sum_w a_w,    a_w = sqrt(mean_w(G_s^2) + e)

    Where the sources have edges, a local change of contrast is not penalised; where they are flat,
    any detail of the fused image is, such as noise and relief.

    *Layout* compares means F of the fused image and M of ``max(visible, infrared)`` over 16 x 16
    windows with a stride of 8:

        layout = 1/2 |unit(F - mean F) - unit(M - mean M)|^2 = 1 - cos(F - mean F, M - mean M)

    Neither part changes if the fused image is multiplied by a positive number or a constant is
    added. *Gradient* is the mean of abs(G_f - G_s) before the division, which keeps detail as
    strong as the stronger source has it; it does not see brightness.

    With `above_noise`, the gradients g of each source first lose what is no stronger than the
    noise in its flattest tenth, so that sensor noise does not count as edges; E is the mean of
    the squares of g over 7 x 7 pixels. Weak edges then count for more: the weights are sqrt(a_w).

        g * clamp(1 - 4 * quantile(E, 0.1) / E, 0, 1)

    Args:
        fused, visible, infrared: (B, C, H, W) images in [0, 1], H and W at least 2.
        window: side of the windows w in pixels; larger than the image counts as the image's.
        flat_energy: e relative to the mean gradient energy of the image, which is 1; at least 1e-6.
        layout_weight, gradient_weight: weights of these parts.
        above_noise: whether only gradients above the noise of their source count.

    Returns:
        (B,) losses, at least 0; finite for constant images too.
    """
    slope = _gradient_field(fused)
    slopes = [_gradient_field(source) for source in (visible, infrared)]
    if above_noise:
        slopes = [_above_noise(each) for each in slopes]
    strongest = _stronger(*slopes)
    field, wanted = _unit_rms(slope), _unit_rms(strongest)
    side = [min(window, length) for length in field.shape[2:]]

    def energy(first: Tensor, second: Tensor) -> Tensor:
        return F.avg_pool2d((first * second).mean(1, keepdim=True), side, stride=1) + flat_energy

    amplitude = energy(wanted, wanted).sqrt()
    ncc = energy(field, wanted) / (energy(field, field).sqrt() * amplitude)
    weights = amplitude.sqrt() if above_noise else amplitude
    edges = ((1 - ncc) * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)
    layouts = [_layout(image) for image in (fused, torch.maximum(visible, infrared))]
    # Half the squared distance of unit vectors is 1 - cos; unlike that, it is 0 where both images
    # are constant.
    layout = 0.5 * (layouts[0] - layouts[1]).square().sum(1)
    loss = edges + layout_weight * layout
    if gradient_weight > 0:
        loss = loss + gradient_weight * (slope - strongest).abs().flatten(1).mean(1)
    return loss


def _above_noise(field: Tensor) -> Tensor:
    energy = field.square().sum(1, keepdim=True)
    energy = F.avg_pool2d(energy, NOISE_WINDOW, 1, NOISE_WINDOW // 2, count_include_pad=False)
    noise = NOISE_FACTOR * energy.flatten(1).quantile(NOISE_QUANTILE, dim=1).view(-1, 1, 1, 1)
    return field * (1 - noise / energy.clamp(min=1e-12)).clamp(0, 1)


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


def match_channels(images: Tensor, channels: int) -> Tensor:
    """Repeat (N, 1, H, W) grey images to 3 channels, or convert RGB images to BT.601 luma."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, C, H, W) images to `size`, (height, width), bilinear with anti-aliasing."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def shrink_images(images: Tensor, short_side: int) -> Tensor:
    """Downscale larger (N, C, H, W) images to a short side of `short_side`, with anti-aliasing.

    For `sample_patches`, which takes one bilinear sample per output pixel and would alias.
    """
    height, width = images.shape[-2:]
    factor = short_side / min(height, width)
    if factor >= 1:
        return images
    return resize_images(images, (round(height * factor), round(width * factor)))


def soften_outliers(images: Tensor, limit: float = 4.0) -> Tensor:
    """Compress values beyond `limit`, of either sign, to a logarithm.

    ``sign(x) * limit * (1 + log(|x| / limit))`` where ``|x| > limit``. Large inputs would overflow
    in a float16 network, and clamping would stop their gradient. The largest float32 becomes 353.
    """
    size = images.abs()
    softened = images.sign() * limit * (1 + (size.clamp(min=limit) / limit).log())
    return torch.where(size <= limit, images, softened)


def patch_entropy(patches: Tensor, bins: int = 256) -> Tensor:
    """Entropy of the grey-level histogram in bits, (..., H, W) to (...); not differentiable.

    `bins` are equal, on [0, 1], 256 in the paper's code; values outside count in the first or last.
    """
    pixels = patches.detach().flatten(-2)
    levels = (pixels * bins).long().clamp(0, bins - 1)
    counts = torch.zeros(*levels.shape[:-1], bins, dtype=torch.float32, device=patches.device)
    counts.scatter_add_(-1, levels, counts.new_ones(()).expand_as(levels))
    # entr(p) = -p ln p, and 0 at p = 0.
    return torch.special.entr(counts / pixels.shape[-1]).sum(-1) / math.log(2)


def random_patch_transforms(
    batch: int, patches: int, image_size: tuple[int, int], *,
    scale: tuple[float, float] = (0.5, 0.8), rotation: float = 5.0, shift: float = 0.1,
    zoom: float = 1.5, shear: float = 5.0, vertical_shear: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Draw random affine transforms for patches; the defaults are the paper's.

    A patch is a square window with a side of ``u * min(H, W)``, u ~ U(`scale`), at a random
    position inside the image, with a small affine transform about its centre: rotation within
    `rotation` degrees, shift up or down within `shift` of the side, zoom from 1 to `zoom`, shear
    along x within `shear` and then along y within `vertical_shear` degrees. The paper's code has
    torchvision's RandomAffine(degrees=5, translate=(0, 0.1), scale=(1, 1.5), shear=5), drawn once
    for a whole batch; here each sample and patch has its own.

    Returns (B, N, 2, 3) float32 maps from patch to image coordinates, on the device of the
    `generator` (None: torch's global one, CPU), for `batch` images of `image_size` (H, W) with N
    `patches` each. They are x before y, from -1 to 1 between the outer pixel edges, as in
    `torch.nn.functional.affine_grid` with ``align_corners=False``.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    # An eighth number only where it is used, so that the others stay those of the paper's patches.
    shape = 7 + (vertical_shear > 0), batch, patches
    draws = torch.rand(shape, generator=generator, device=device, dtype=torch.float32)
    side, left, top, turn, move, enlarge, slant, *lean = draws.unbind()

    # The window, as half-sides and centre in image coordinates.
    height, width = image_size
    side = (scale[0] + (scale[1] - scale[0]) * side) * min(height, width)
    half_width, half_height = side / width, side / height
    center_x = (2 * left - 1) * (1 - half_width)
    center_y = (2 * top - 1) * (1 - half_height)

    # Warping looks up the source position of each output pixel, so the map is the inverse of the
    # transform p -> R(turn) @ ShearY(lean) @ ShearX(slant) @ p * enlarge + (0, move).
    turn = torch.deg2rad(rotation * (2 * turn - 1))
    slant = torch.tan(torch.deg2rad(shear * (2 * slant - 1)))
    enlarge = 1 + (zoom - 1) * enlarge
    move = 2 * shift * (2 * move - 1)  # patch coordinates span 2
    xx, xy = torch.cos(turn), torch.sin(turn)
    yx, yy = -xy, xx
    for each in lean:  # one, or none
        tangent = torch.tan(torch.deg2rad(vertical_shear * (2 * each - 1)))
        yx, yy = yx - tangent * xx, yy - tangent * xy
    xx, xy, yx, yy = (each / enlarge for each in (xx - slant * yx, xy - slant * yy, yx, yy))

    x_row = [half_width * xx, half_width * xy, center_x - half_width * xy * move]
    y_row = [half_height * yx, half_height * yy, center_y - half_height * yy * move]
    return torch.stack([torch.stack(row, -1) for row in (x_row, y_row)], -2)


def sample_patches(
    images: Tensor, transforms: Tensor, size: tuple[int, int], mode: str = "bilinear"
) -> Tensor:
    """Crop and warp patches with one sampling; the image is reflected at its border.

    (B, C, H, W) images and (B, N, 2, 3) maps from `random_patch_transforms`, on one device, give
    (B, N, C, height, width) patches, differentiable in the images; `mode` is "bilinear" or
    "nearest".
    """
    count, (height, width) = transforms.shape[1], size
    # Not F.affine_grid: under autocast, TF32 or torch.set_float32_matmul_precision its matrix
    # product would compute the sample positions with only 8 or 10 bits.
    x_axis, y_axis, origin = transforms.to(images.dtype)[:, :, None, None].unbind(-1)
    x, y = (
        torch.arange(1, 2 * side, 2, dtype=images.dtype, device=images.device) / side - 1
        for side in (width, height)
    )
    grid = x_axis * x[:, None] + (y_axis * y[:, None, None] + origin)
    # The patches of an image are stacked into one tall output, so the image is not copied.
    tall = F.grid_sample(
        images, grid.flatten(1, 2), mode, padding_mode="reflection", align_corners=False
    )
    return tall.unflatten(2, (count, height)).transpose(1, 2)


def patch_labels(labels: Tensor, transforms: Tensor, share: float = 0.85) -> Tensor:
    """The label that covers at least `share` of each patch, or -1 where none covers so much.

    (B, H, W) integers from 0 and (B, N, 2, 3) maps from `random_patch_transforms`, on one device,
    give (B, N) int64. `share` is above 1/2; it is measured on 32 x 32 nearest samples of a patch.
    """
    size = LABEL_SAMPLES, LABEL_SAMPLES
    samples = sample_patches(labels[:, None].float(), transforms, size, "nearest").flatten(2)
    # A label that has more than half of the samples is their median.
    label = samples.sort(-1).values[..., samples.shape[-1] // 2]
    covered = (samples == label[..., None]).float().mean(-1)
    return torch.where(covered >= share, label, -1.0).long()
