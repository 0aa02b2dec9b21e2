"""Every formula of the loss: tensors in, tensors out.

Nothing here knows a module, a text or a device policy. An *embedding* is a unit vector of a
CLIP encoder, a *direction* is a unit difference of two embeddings; both lie along the last
axis, of length D. Images are (N, C, H, W) with values in [0, 1]. All functions raise a TypeError
or a ValueError for arguments of other types or shapes than they describe.

The equations and constants are those of Wang, Miao, Zhou, Zhang and Qiao, "Infrared and Visible
Image Fusion with Language-Driven Loss in CLIP Embedding Space", ACM MM 2025 (arXiv 2402.16267),
called "the paper" below, and of its published code where the text is silent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks

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

# Differences of unit vectors shorter than this count as "no direction". Real images differ from
# their sources by 0.1 or more, so no real case changes, and where fused == source the gradient
# stays below 1 / DIRECTION_EPS instead of becoming NaN.
DIRECTION_EPS = 1e-3

# Root mean squares of gradients and of contrasts below this, a quarter of a grey level of 8 bits,
# count as "constant": the gradient stays finite there.
CONSTANT_RMS = 1e-3

# Windows of `structure_loss` that compare the layout of two images, in pixels.
LAYOUT_WINDOW = 16

# ITU-R BT.601 luma, the grey of the infrared-visible field.
LUMA = (0.299, 0.587, 0.114)

# Affine jitter of a patch in the paper's code: torchvision's
# RandomAffine(degrees=5, translate=(0, 0.1), scale=(1, 1.5), shear=5).
MAX_ROTATION = 5.0  # degrees, either way
MAX_SHIFT = 0.1  # of the patch's side, up or down
MAX_ZOOM = 1.5  # from 1
MAX_SHEAR = 5.0  # degrees along x, either way


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
    """How far the steps from both sources to an image turn from where the texts point.

        1/2 (1 - cos(dir(v_v, e), D_v)) + 1/2 (1 - cos(dir(v_r, e), D_r))

    Args:
        embedding: (..., D) embeddings e of fused images or of their patches.
        visible_embedding: (..., D) embeddings v_v of the whole visible images.
        infrared_embedding: (..., D) embeddings v_r of the whole infrared images.
        visible_direction: (D,) text direction D_v from "visible" to the objective, or (..., D)
            with one for each embedding.
        infrared_direction: likewise D_r, from "infrared".

    Returns:
        (...) losses in [0, 2]. Differentiable in every argument.
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
    """The direction between both: ``(D_v + D_r) / max(|D_v + D_r|, 1e-3)``.

    Of all steps that an image could take from both sources alike, the one along it has the least
    `direction_loss`.

    Args:
        visible_direction: (..., D) text directions D_v.
        infrared_direction: (..., D) text directions D_r.

    Returns:
        (..., D) unit vectors; zero where both are zero or opposite.
    """
    directions = {"visible_direction": visible_direction, "infrared_direction": infrared_direction}
    checks.check_alike(directions, "(..., D)")
    return F.normalize(visible_direction + infrared_direction, dim=-1, eps=DIRECTION_EPS)


def similarity_loss(
    embedding: Tensor, visible_embedding: Tensor, infrared_embedding: Tensor
) -> Tensor:
    """Distance of the fused image from both sources: ``1 - (cos(e, v_v) + cos(e, v_r)) / 2``.

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
    """Per-sample mean of the losses of those patches that passed the filter.

    Args:
        sums: (B,) sums of the kept patches' losses.
        kept: (B, N) boolean, which patches passed.
        reduction: "all" divides by N, so that dropped patches count as zero (the paper's
            code); "kept" divides by the number of kept patches.

    Returns:
        (B,) means; zero for a sample without a kept patch.
    """
    checks.check_axes("sums", sums, "(B,)")
    checks.check_axes("kept", kept, f"({len(sums)}, N)", boolean=True)
    checks.check_choice("reduction", reduction, ("all", "kept"))
    if reduction == "all":
        return sums / kept.shape[1]
    return sums / kept.sum(1).clamp(min=1)


def total_loss(terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum ``sum_i weights[i] * terms[i]``; the paper's weights are 2, 10, 6 and 10 for
    the direction, patch, similarity and perceptual terms."""
    _check_lengths(terms=terms, weights=weights)
    return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum(0)


def max_feature_loss(
    fused: Sequence[Tensor], visible: Sequence[Tensor], infrared: Sequence[Tensor]
) -> Tensor:
    """The paper's perceptual term: ``sum_l MSE(phi_l(fused), max(phi_l(vis), phi_l(ir)))``.

    Args:
        fused: the feature maps phi_l, one (B, C_l, H_l, W_l) a layer.
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
    for name, sequence in others:
        if len(sequence) != len(reference):
            raise ValueError(
                f"`{name}` must be as many as `{first}`, {len(reference)}, got {len(sequence)}"
            )


def intensity_gradient_loss(
    fused: Tensor, visible: Tensor, infrared: Tensor, gradient_weight: float = 2.0
) -> Tensor:
    """Ask for the brighter source's intensity and the stronger source's edges.

        mean |f - max(v, r)| + gradient_weight * mean |grad f - g|

    where g is, at each pixel and axis, the source gradient of larger magnitude *with its sign*:
    matching absolute gradients would let the network invert contrast.

    Args:
        fused: (B, C, H, W) images.
        visible: like `fused`.
        infrared: like `fused`.
        gradient_weight: weight of the gradient part.

    Returns:
        (B,) losses.
    """
    images = {"fused": fused, "visible": visible, "infrared": infrared}
    checks.check_alike(images, "(B, C, H, W)")
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
    """Ask where the edges are and which way they go; leave brightness and contrast open.

        edges + layout_weight * layout

    *Edges* compares gradient fields G, each divided by its root mean square over the image: that
    of the fused image with, at each pixel and axis, the source gradient of larger magnitude with
    its sign. In every window w, with e the energy that counts as flat,

        ncc_w = (mean_w(G_f G_s) + e) / sqrt((mean_w(G_f^2) + e) (mean_w(G_s^2) + e))
        edges = sum_w a_w (1 - ncc_w) / sum_w a_w,    a_w = sqrt(mean_w(G_s^2) + e)

    Where the sources have edges e hardly counts, and a local gain costs nothing. Where they are
    flat, any detail of the fused image does: noise and relief.

    *Layout* compares means F of the fused image and M of ``max(visible, infrared)`` over 16 x 16
    windows with a stride of 8:

        layout = 1/2 |unit(F - mean F) - unit(M - mean M)|^2 = 1 - cos(F - mean F, M - mean M)

    A gain and a bias of the fused image change neither. In plain PyTorch, for one sample:

        G = torch.stack([x.diff(dim=-1)[:, :-1], x.diff(dim=-2)[:, :, :-1]])  # x: (C, H, W)
        G = G / G.square().mean().sqrt()

    Args:
        fused: (B, C, H, W) images, H and W at least 2.
        visible: like `fused`.
        infrared: like `fused`.
        window: side of the windows w in pixels, at most that of the image.
        flat_energy: e, as a share of the image's mean energy, which is 1.
        layout_weight: weight of the layout part.

    Returns:
        (B,) losses, 0 to ``1 + 2 * layout_weight``; finite for constant images too.
    """
    images = {"fused": fused, "visible": visible, "infrared": infrared}
    checks.check_alike(images, "(B, C, H, W)")
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
    # Half the squared distance of unit vectors is 1 - cos, and 0 where both images are constant.
    layout = 0.5 * (layouts[0] - layouts[1]).square().sum(1)
    return edges + layout_weight * layout


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
    """Grey images repeated to 3 channels, or the BT.601 luma of colour images.

    Args:
        images: (N, 1 | 3, H, W).
        channels: 1 or 3.

    Returns:
        (N, channels, H, W); `images` itself where nothing is to be done.
    """
    checks.check_axes("images", images, "(N, C, H, W)")
    if channels not in (1, 3) or images.shape[1] not in (1, 3):
        raise ValueError(
            f"`images` and `channels` must have 1 or 3 channels, got {images.shape[1]} and "
            f"{channels!r}; choose channels with images[:, :3]"
        )
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Squash images to `size` (height, width): bilinear, anti-aliased; (N, C, H, W) in and out."""
    checks.check_axes("images", images, "(N, C, H, W)")
    checks.check_size("size", size)
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def soften_outliers(images: Tensor, limit: float = 4.0) -> Tensor:
    """Values beyond `limit`, either way, become ``limit * (1 + log(|x| / limit))`` with their sign.

    What goes into a float16 network must not overflow in its first layer, and clamping would
    leave no gradient. 1e4 becomes 35, the largest float32 becomes 360.

    Args:
        images: any tensor; images in [0, 1] are far from the limit and come back as they are.
        limit: positive.

    Returns:
        A tensor of the same shape.
    """
    size = images.abs()
    softened = images.sign() * limit * (1 + (size.clamp(min=limit) / limit).log())
    return torch.where(size <= limit, images, softened)


def shrink_images(images: Tensor, short_side: int) -> Tensor:
    """Bring the short side of larger images down to `short_side` pixels, anti-aliased.

    `sample_patches` takes one bilinear sample a pixel and would alias on images far larger than
    its output. Images that are small enough come back as they are.
    """
    checks.check_axes("images", images, "(N, C, H, W)")
    checks.check_number("short_side", short_side, minimum=1, whole=True)
    height, width = images.shape[-2:]
    factor = short_side / min(height, width)
    if factor >= 1:
        return images
    return resize_images(images, (round(height * factor), round(width * factor)))


def patch_entropy(patches: Tensor, bins: int = 256) -> Tensor:
    """Entropy of the grey-level histogram, in bits.

    Args:
        patches: (..., H, W) grey levels in [0, 1]; values outside count in the end bins.
        bins: number of equal bins on [0, 1] (the paper's code: 256).

    Returns:
        (...) entropies from 0 (constant) to ``log2(bins)``. Not differentiable.
    """
    checks.check_axes("patches", patches, "(..., H, W)")
    checks.check_number("bins", bins, minimum=1, whole=True)
    pixels = patches.detach().flatten(-2)
    levels = (pixels * bins).long().clamp(0, bins - 1)
    counts = torch.zeros(*levels.shape[:-1], bins, dtype=torch.float32, device=patches.device)
    counts.scatter_add_(-1, levels, counts.new_ones(()).expand_as(levels))
    # entr(p) = -p ln p, and 0 at p = 0.
    return torch.special.entr(counts / pixels.shape[-1]).sum(-1) / math.log(2)


def random_patch_transforms(
    batch: int,
    patches: int,
    image_size: tuple[int, int],
    *,
    scale: tuple[float, float] = (0.5, 0.8),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the geometry of the paper's random patches.

    A square window with a side of ``u * min(H, W)``, u ~ U(`scale`), lies anywhere inside the
    image; then comes a mild affine about its centre: rotation within 5 degrees, vertical
    shift within 10 % of the side, zoom 1 to 1.5, shear within 5 degrees along x. Where the
    paper draws one transform for a whole batch, here every sample and patch has its own.

    Args:
        batch: number of images B.
        patches: number of patches N of each.
        image_size: (H, W) in pixels.
        scale: range of the window's side as a fraction of the image's short side.
        generator: where the random numbers come from; None is torch's global CPU generator.

    Returns:
        (B, N, 2, 3) float32 maps on the generator's device, for `sample_patches`: from patch
        coordinates to image coordinates, both from -1 to 1 over the extent of the respective
        pixels (``align_corners=False``), x before y.
    """
    checks.check_number("batch", batch, minimum=1, whole=True)
    checks.check_number("patches", patches, minimum=1, whole=True)
    checks.check_size("image_size", image_size)
    scale = checks.check_interval("scale", scale, minimum=0.0, maximum=1.0, empty=True)
    checks.check_type("generator", generator, torch.Generator, optional=True)
    device = generator.device if generator is not None else torch.device("cpu")
    draws = torch.rand(7, batch, patches, generator=generator, device=device, dtype=torch.float32)
    side, left, top, turn, shift, zoom, shear = draws.unbind()

    # The window, as half-sides and centre in image coordinates.
    height, width = image_size
    side = (scale[0] + (scale[1] - scale[0]) * side) * min(height, width)
    half_width, half_height = side / width, side / height
    center_x = (2 * left - 1) * (1 - half_width)
    center_y = (2 * top - 1) * (1 - half_height)

    # An image is warped by looking up each output pixel's origin, so the map is the inverse of
    # the motion p -> R(turn) @ Shear(shear) @ p * zoom + (0, shift).
    turn = torch.deg2rad(MAX_ROTATION * (2 * turn - 1))
    shear = torch.tan(torch.deg2rad(MAX_SHEAR * (2 * shear - 1)))
    zoom = 1 + (MAX_ZOOM - 1) * zoom
    shift = 2 * MAX_SHIFT * (2 * shift - 1)  # patch coordinates span 2
    cos, sin = torch.cos(turn), torch.sin(turn)
    xx, xy = (cos + shear * sin) / zoom, (sin - shear * cos) / zoom
    yx, yy = -sin / zoom, cos / zoom

    x_row = torch.stack([half_width * xx, half_width * xy, center_x - half_width * xy * shift], -1)
    y_row = torch.stack(
        [half_height * yx, half_height * yy, center_y - half_height * yy * shift], -1
    )
    return torch.stack([x_row, y_row], -2)


def sample_patches(images: Tensor, transforms: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut and warp patches in one bilinear sampling; beyond the border the image is mirrored.

    Args:
        images: (B, C, H, W).
        transforms: (B, N, 2, 3) maps from `random_patch_transforms`, on the device of `images`.
        size: (height, width) of the patches.

    Returns:
        (B, N, C, height, width), differentiable in `images`.
    """
    checks.check_axes("images", images, "(B, C, H, W)")
    checks.check_axes("transforms", transforms, f"({len(images)}, N, 2, 3)")
    checks.check_size("size", size)
    count, (height, width) = transforms.shape[1], size
    # Not F.affine_grid: its matrix product would place the samples with the 8 or 10 bits that
    # autocast, TF32 or torch.set_float32_matmul_precision allow.
    x_axis, y_axis, origin = transforms.to(images.dtype)[:, :, None, None].unbind(-1)
    x, y = (
        torch.arange(1, 2 * side, 2, dtype=images.dtype, device=images.device) / side - 1
        for side in (width, height)
    )
    grid = x_axis * x[:, None] + (y_axis * y[:, None, None] + origin)
    # The patches of an image are stacked into one tall output: no copies of the image.
    grid = grid.flatten(1, 2)
    tall = F.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return tall.unflatten(2, (count, height)).transpose(1, 2)
