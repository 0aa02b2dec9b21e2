"""The section on the loss of hand-made fusions."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from clip_fusion_loss import FusionObjective, LanguageDrivenFusionLoss, StructureLoss
from clip_fusion_loss.functional import resize_images
from parts.data.images import luminance, to_8bit
from parts.data.pairs import Pair, spread
from parts.measuring.baselines import laplacian_pyramid, maximum
from parts.measuring.comparing import Row, mean_of
from parts.measuring.trials import Bench, Trial
from parts.pages import sheets
from parts.pages.shown import CAPTION, PICTURED, SHOWN_INCHES, within
from parts.pages.tables import ordinal, table
from tiny_clip.degradations import gaussian_blur
from tiny_clip.evaluate import fusions, modality_table

#: Side at which hand-made fusions are judged, in pixels.
RANKING_SIDE = 192

#: Fusions in the picture, from the best to the worst; more would not fit on a screen.
PICTURED_FUSIONS = 8


def ranking(bench: Bench, base: Trial, seeds: Sequence[int], folder: Path) -> str:
    """The loss of fusions made by hand."""
    patches = torch.Generator()
    criterion = LanguageDrivenFusionLoss(
        FusionObjective(base.prompt),
        encoder=bench.encoder,
        direction_weight=base.direction,
        patch_weight=base.patch,
        similarity_weight=base.similarity,
        regularizer=StructureLoss(
            window=base.window, flat_energy=base.flat_energy, layout_weight=base.layout_weight
        ),
        regularizer_weight=base.regularizer,
        patch_reduction=base.reduction,
        reduction="none",
        generator=patches,
    ).to(bench.device)
    rows: dict[str, list[Row]] = {}
    for pair in bench.test:
        visible, infrared = squared(pair)
        for name, image in hand_made(visible, infrared).items():
            patches.manual_seed(0)  # the same ones of every fusion
            with torch.no_grad():
                terms = criterion.terms(*(i.to(bench.device) for i in (image, visible, infrared)))
            row = {field: getattr(terms, field).item() for field in terms._fields}
            language = row["total"] - base.regularizer * row["regularizer"]
            rows.setdefault(name, []).append({"total": row["total"], "of CLIP": language, **row})
    means = {name: [mean_of(group)] for name, group in rows.items()}
    ordered = dict(sorted(means.items(), key=lambda item: item[1][0]["total"]))
    by_clip = sorted(ordered, key=lambda name: ordered[name][0]["of CLIP"])
    places = [ordinal(list(names).index("good") + 1) for names in (ordered, by_clip)]
    visible, infrared = (
        torch.cat([resize_images(luminance(s)[None], bench.encoder.image_size) for s in side])
        for side in zip(*[(pair.visible, pair.infrared) for pair in bench.test], strict=True)
    )
    zero_shot = modality_table(bench.encoder, visible, infrared)
    accuracy = {name: [row] for name, row in zero_shot.items()}
    parts = [
        "## The loss of hand-made fusions",
        'Sorted by the loss, lowest first. The fusion "good" has the base of the brighter source '
        f"and the detail of the stronger one; of {len(ordered)} fusions it is {places[0]} by the "
        f"whole loss, with the regularizer, and {places[1]} by the CLIP terms alone.",
        table(ordered, digits=3),
        "Zero-shot classification of the sources with the paper's texts. *AUC* needs no threshold; "
        "*paired* compares the two images of a pair:",
        table(accuracy, digits=2),
    ]
    if bench.shown:
        pairs = [squared(bench.shown[i]) for i in within(bench, PICTURED)]
        made = [hand_made(*pair) for pair in pairs]
        chosen = [list(ordered)[place] for place in spread(len(ordered), PICTURED_FUSIONS)]
        pictures = {
            f"{name}: {ordered[name][0]['total']:.2f}": [to_8bit(i[name][0]) for i in made]
            for name in chosen
        }
        windows = [sheets.salient_window(*(to_8bit(i[0]) for i in pair)) for pair in pairs]
        path = folder / "images" / "ranking.jpg"
        sheets.save_sheet(pictures, windows, path, cell_inches=SHOWN_INCHES, as_rows=True)
        parts += ["![From the lowest loss to the highest](images/ranking.jpg)", CAPTION]
    return "\n\n".join(parts)


def squared(pair: Pair) -> tuple[Tensor, Tensor]:
    """Visible and infrared, (1, 1, S, S) each in [0, 1] with S = `RANKING_SIDE`."""
    visible, infrared = (
        resize_images(luminance(image)[None], (RANKING_SIDE, RANKING_SIDE)).clamp(0, 1)
        for image in (pair.visible, pair.infrared)
    )
    return visible, infrared


def hand_made(visible: Tensor, infrared: Tensor) -> dict[str, Tensor]:
    """Good and bad fusions of such a pair, by name."""
    made = fusions(visible, infrared)
    made["blurred"] = gaussian_blur(made["good"], torch.full((1, 1, 1, 1), 3.2))
    pair = Pair("", to_8bit(visible[0]), to_8bit(infrared[0]))
    for name, fusion in (("maximum", maximum), ("Laplacian pyramid", laplacian_pyramid)):
        made[name] = fusion(pair)[None] / 255
    return made
