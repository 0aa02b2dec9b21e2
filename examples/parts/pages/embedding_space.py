"""Draw texts, sources and fused images on a plane of CLIP's embedding space."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from clip_fusion_loss import FrozenCLIP, FusionObjective
from clip_fusion_loss.functional import resize_images
from parts.files import written_whole


@torch.no_grad()
def save_embedding_space(
    encoder: FrozenCLIP,
    objective: FusionObjective,
    visible: Sequence[Tensor],
    infrared: Sequence[Tensor],
    fused: Mapping[str, Sequence[Tensor]],
    path: Path,
) -> None:
    """Draw two panels on the same plane: the texts, and the images with the mean of each group.

    The vertical axis is the mean of both text directions, from the source texts to the fused
    image's. The horizontal one is the step from the infrared to the visible text, orthogonal to it.
    Both panels are centred between the two sources.

    Args:
        visible, infrared: uint8 images (1, H, W).
        fused: fused images of the same scenes, likewise, by the name of the method; that of the
            objective is its sentence in quotation marks.
    """
    texts = {
        name: encoder.encode_text(getattr(objective, name)).mean(0)
        for name in ("visible", "infrared", "fused")
    }
    images = {
        name: _embed(encoder, group)
        for name, group in {"visible": visible, "infrared": infrared, **fused}.items()
    }
    plane = _plane(texts)
    colors = {name: f"C{number}" for number, name in enumerate(images)}
    colors["fused"] = colors.get(f'"{objective.fused[0]}"', f"C{len(images)}")
    figure = Figure(figsize=(7.5, 4.2), dpi=200, layout="constrained")
    left, right = figure.subplots(1, 2)
    flat = {name: _on(plane, vector[None], texts) for name, vector in texts.items()}
    _draw(left, flat, ["fused"], colors)
    left.set_title("texts")
    flat = {name: _on(plane, group, images) for name, group in images.items()}
    _draw(right, flat, list(fused), colors)
    right.set_title("images")
    for axes in (left, right):
        axes.set_xlabel("from infrared to visible")
        axes.set_ylabel("towards the objective")
        axes.margins(0.15)
    legend = figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    for text in legend.get_texts():
        text.set_parse_math(False)
    with written_whole(path) as temporary:
        figure.savefig(temporary)


def _embed(encoder: FrozenCLIP, images: Sequence[Tensor]) -> Tensor:
    sized = [resize_images(image[None] / 255, encoder.image_size) for image in images]
    return encoder.encode_image(torch.cat(sized).to(encoder.device)).cpu()


def _plane(texts: Mapping[str, Tensor]) -> Tensor:
    """Two orthonormal rows: to the right and upwards."""
    steps = [texts["fused"] - texts[name] for name in ("visible", "infrared")]
    up = sum(step / step.norm() for step in steps)
    up = up / up.norm()
    right = texts["visible"] - texts["infrared"]
    right = right - (right @ up) * up
    return torch.stack([right / right.norm(), up]).cpu()


def _on(plane: Tensor, vectors: Tensor, all_vectors: Mapping[str, Tensor]) -> Tensor:
    sources = (all_vectors[name].reshape(-1, plane.shape[1]) for name in ("visible", "infrared"))
    centre = torch.stack([group.mean(0) for group in sources]).mean(0)
    return (vectors.cpu() - centre.cpu()) @ plane.T


def _draw(
    axes: Axes, points: Mapping[str, Tensor], targets: Sequence[str], colors: Mapping[str, str]
) -> None:
    """Points faint, their mean bold, and an arrow from each source's mean to each target's."""
    means = {name: group.mean(0).tolist() for name, group in points.items()}
    for name, group in points.items():
        if len(group) > 1:
            axes.scatter(*group.T.numpy(), s=10, color=colors[name], alpha=0.35, linewidths=0)
        label = textwrap.fill(name, 50)
        axes.scatter(*means[name], s=60, color=colors[name], label=label, zorder=3)
        if name in targets:
            for source in ("visible", "infrared"):
                style = {"arrowstyle": "->", "color": colors[name], "alpha": 0.7}
                axes.annotate("", means[name], means[source], arrowprops=style)
    axes.set_aspect("equal", adjustable="datalim")
