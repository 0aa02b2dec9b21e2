"""Regions: an objective for each label of a map, against a float64 reference and in programs."""

import warnings

import pytest
import torch

from clip_fusion_loss import (
    EmbeddedFusionModel,
    FrozenCLIP,
    FusionObjective,
    IntensityGradientLoss,
    PatchGeometry,
    functional,
)
from conftest import build_clip, draw_images, make_criterion, named, same_transforms
from reference import Reference, entropy, grey, warp

TEXTS = {"dark": "a dark image", "bright": "a bright image", "blurry": "a blurry image"}
ROLES = [(text,) for text in (FusionObjective().visible[0], FusionObjective().infrared[0])]


def halves(batch, size):
    """Label 0 at the left and 1 at the right of each image."""
    labels = torch.zeros(batch, *size, dtype=torch.int64)
    labels[..., size[1] // 2 :] = 1
    return labels


def three(batch, size):
    """A band of label 2 at the bottom, too; in the last image label 1 alone."""
    labels = halves(batch, size)
    labels[:, size[0] * 2 // 3 :] = 2
    labels[-1] = 1
    return labels


def run(criterion, images, **arguments):
    fused = images[0].detach().requires_grad_()
    terms = criterion.terms(**named([fused, *images[1:]]), **arguments)
    terms.total.sum().backward()
    return terms, fused.grad


def covering_label(labels, matrix, share):
    """The label with at least `share` of 32 x 32 samples, else None; `labels` is (H, W)."""
    counts = {}
    for label in labels.unique().tolist():
        height, width = labels.shape
        axis = (2 * torch.arange(32, dtype=torch.float64) + 1) / 32 - 1
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        x, y = (row[0] * x + row[1] * y + row[2] for row in matrix.double())
        columns, rows = ((x + 1) * width / 2).floor(), ((y + 1) * height / 2).floor()
        # Outside, the map is mirrored.
        columns = torch.where(columns < 0, -1 - columns, columns)
        columns = torch.where(columns >= width, 2 * width - 1 - columns, columns)
        rows = torch.where(rows < 0, -1 - rows, rows)
        rows = torch.where(rows >= height, 2 * height - 1 - rows, rows)
        counts[label] = (labels[rows.long(), columns.long()] == label).double().mean().item()
    found = [label for label, part in counts.items() if part >= share]
    return found[0] if found else None


def expected_terms(references, images, labels, transforms, *, threshold, over, share, short):
    """The terms of a batch, a patch at a time."""
    any_one, rows = references[0], []
    for f, v, r, where, maps in zip(*images, labels, transforms, strict=True):
        e, *sources = (any_one.embed_image(image) for image in (f, v, r))
        present = where.unique().tolist()
        whole = torch.zeros((), dtype=torch.float64)
        if len(present) == 1:
            whole = references[present[0]].direction(e, *sources)
        similarity = 1 - 0.5 * sum(e @ source for source in sources)
        small = [any_one.shrink(image, short) for image in (f, v, r)]
        losses = []
        for matrix in maps:
            label = covering_label(where, matrix, share)
            of_sources = [warp(grey(image), matrix, any_one.size) for image in small[1:]]
            if label is not None and all(entropy(patch) > threshold for patch in of_sources):
                patch = any_one.embed_image(warp(small[0], matrix, any_one.size))
                losses.append(references[label].direction(patch, *sources))
        count = len(maps) if over == "all" else max(len(losses), 1)
        patches = sum(losses, torch.zeros((), dtype=torch.float64)) / count
        rows.append([whole, patches, similarity, torch.tensor(len(losses) / len(maps)).double()])
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize(
    ("draw", "size", "scale", "channels", "over", "share"),
    [
        (halves, (48, 57), (0.25, 0.5), (1, 1, 1), "all", 0.85),
        (three, (48, 61), (0.25, 0.5), (3, 1, 1), "kept", 0.6),
        (three, (90, 101), (0.4, 0.5), (1, 3, 1), "kept", 0.85),  # images shrink, labels do not
    ],
)
def test_terms_and_gradient_equal_the_reference(
    encoder, tokenizer, draw, size, scale, channels, over, share, chunk
):
    images = draw_images(channels=channels, size=size, dtype=torch.float64)
    labels = draw(2, size)
    criterion = make_criterion(
        encoder, reduction="none", num_patches=12, region_share=share,
        patch_geometry=PatchGeometry(scale=scale),
        min_patch_entropy=5.0, patch_reduction=over, patch_chunk=chunk,
    )  # fmt: skip
    bank = criterion.embed(TEXTS)
    terms, gradient = run(
        criterion, [image.float() for image in images], objectives=bank, regions=labels
    )

    references = [Reference(build_clip(), tokenizer, (text,), *ROLES) for text in TEXTS.values()]
    transforms = same_transforms(criterion, images[0])
    images[0].requires_grad_()
    options = {"threshold": 5.0, "over": over, "share": share}
    options["short"] = round(32 / scale[0])
    expected = expected_terms(references, images, labels, transforms, **options)
    (2 * expected[0] + 10 * expected[1] + 6 * expected[2]).sum().backward()

    without, _ = run(criterion, [image.detach().float() for image in images])
    assert (expected[3] > 0).all()
    assert expected[3].mean() < without.kept.mean(), "regions must have something to decide"
    for name, wanted in zip(("direction", "patch", "similarity", "kept"), expected, strict=True):
        actual = getattr(terms, name).double()
        torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=0)
    scale = images[0].grad.abs().max()
    assert (gradient.double() - images[0].grad).abs().max() < 1e-5 * scale


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patch_chunk": None},
        {"patch_chunk": 5, "patch_reduction": "kept"},
        {"min_patch_entropy": None},
        {"patch_weight": 0},
        {"reduction": "mean", "regularizer": IntensityGradientLoss()},
        {"precision": "bf16"},
        {"compile": True, "patch_chunk": 5},
        {"eval": True, "region_share": 1.0},
        {"autocast": True},
    ],
    ids=str,
)
def test_one_label_everywhere_is_as_without_regions(encoder, monkeypatch, options):
    monkeypatch.setattr(encoder, "compile", lambda **options: None)
    images = draw_images(batch=3)
    chosen = torch.tensor([2, 0, 1])
    options = {"reduction": "none", **options}
    evaluated, autocast = options.pop("eval", False), options.pop("autocast", False)

    def measured(arguments):
        criterion = make_criterion(encoder, **options).train(not evaluated)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return run(criterion, images, **arguments(criterion.embed(TEXTS)))

    expected = measured(lambda bank: {"objectives": bank[chosen]})
    labels = chosen.byte()[:, None, None].expand(3, *images[0].shape[2:])
    actual = measured(lambda bank: {"objectives": bank, "regions": labels})
    for term, wanted in zip((*actual[0], actual[1]), (*expected[0], expected[1]), strict=True):
        torch.testing.assert_close(term, wanted, rtol=1e-6, atol=1e-6)


def test_a_bank_in_any_form_also_of_more_rows_than_images(encoder):
    images, labels = draw_images(size=(60, 60)), three(2, (60, 60))
    options = {"patch_geometry": PatchGeometry(scale=(0.25, 0.5)), "min_patch_entropy": None}
    criterion = make_criterion(encoder, **options).eval()
    bank = criterion.embed(TEXTS)
    values = [
        criterion(**named(images), objectives=objectives, regions=labels)
        for objectives in (bank, bank[["dark", "bright", "blurry"]], list(TEXTS.values()))
    ]
    assert values[0] == values[1] == values[2]
    assert values[0] != criterion(**named(images), objectives=bank, regions=(labels + 1) % 3)


@pytest.mark.parametrize(
    ("columns", "share", "expected"),
    [
        ({0: 4, 7: 28}, 0.85, 7),  # 0.875 of the patch
        ({0: 4, 7: 28}, 0.9, -1),
        ({7: 28, 9: 4}, 0.85, 7),
        ({1: 6, 3: 18, 5: 8}, 0.55, 3),
        ({1: 15, 3: 17}, 0.51, 3),
        ({1: 17, 3: 15}, 0.51, 1),
        ({1: 16, 3: 16}, 0.51, -1),
        ({250: 32}, 1.0, 250),
        ({250: 31, 0: 1}, 1.0, -1),
    ],
)
def test_which_label_covers_a_patch(columns, share, expected):
    row = torch.cat([torch.full((count,), label) for label, count in columns.items()])
    whole = torch.tensor([[[[1.0, 0, 0], [0, 1.0, 0]]]])
    for labels in (row.expand(1, 32, 32), row[:, None].expand(1, 32, 32)):
        assert functional.patch_labels(labels, whole, share).tolist() == [[expected]]


MISTAKES = {
    "an array": (lambda labels, bank: (labels.numpy(), bank), TypeError, "got ndarray"),
    "a mask": (lambda labels, bank: (labels == 1, bank), TypeError, r"regions\.long\(\)"),
    "floats": (lambda labels, bank: (labels.float(), bank), TypeError, "hold integers, got torch"),
    "other size": (lambda labels, bank: (labels[:, 1:], bank), ValueError, "crop labels with"),
    "other batch": (lambda labels, bank: (labels[:1], bank), ValueError, r"\(2, 48, 48\), got"),
    "channels": (lambda labels, bank: (labels[:, None], bank), ValueError, "a channel axis"),
    "elsewhere": (lambda labels, bank: (labels.to("meta"), bank), ValueError, "on the device of"),
    "too high": (lambda labels, bank: (labels + 2, bank), ValueError, "0 to 2.*from 2 to 3"),
    "negative": (lambda labels, bank: (labels - 1, bank), ValueError, "from -1 to 0"),
    "no bank": (lambda labels, bank: (labels, None), ValueError, "`objectives` .*, got None"),
    "one": (lambda labels, bank: (labels, bank["dark"]), ValueError, "`objectives`.*one obj"),
    "a text": (lambda labels, bank: (labels, "a dark image"), TypeError, "`objectives`"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_calls(encoder, mistake):
    spoil, error, words = MISTAKES[mistake]
    images, labels = draw_images(size=(48, 48)), halves(2, (48, 48))
    criterion = make_criterion(encoder)
    bank = criterion.embed(TEXTS)
    for _ in range(2):  # on a CPU labels are looked at in every call
        regions, objectives = spoil(labels, bank)
        with pytest.raises(error, match=words if "`" in words else f"`regions` must .*{words}"):
            criterion(**named(images), objectives=objectives, regions=regions)
        criterion(**named(images), objectives=bank, regions=labels)


def test_a_saved_bank_of_another_encoder_is_refused(encoder, tokenizer):
    other = EmbeddedFusionModel(TEXTS, FrozenCLIP(build_clip(seed=1), tokenizer, name="other"))
    images = draw_images(size=(48, 48))
    with pytest.raises(ValueError, match="'other', got 'custom'"):
        make_criterion(encoder)(**named(images), objectives=other, regions=halves(2, (48, 48)))


@pytest.mark.parametrize("entropy", [None, 5.0])
def test_one_warning_if_no_patch_lies_in_a_region(encoder, entropy):
    images = draw_images(batch=1, size=(48, 48))
    stripes = (torch.arange(48) // 3 % 2).expand(1, 48, 48)
    criterion = make_criterion(encoder, min_patch_entropy=entropy, num_patches=2)
    bank = criterion.embed(TEXTS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(40):
            terms = criterion.terms(**named(images), objectives=bank, regions=stripes)
            assert (terms.kept, terms.patch, terms.direction) == (0, 0, 0)
    (warning,) = caught
    assert "none lies in one region" in str(warning.message)
    assert "give most crops one label" in str(warning.message)
    assert ("bits of entropy" in str(warning.message)) == (entropy is not None)
    assert warning.filename == __file__
