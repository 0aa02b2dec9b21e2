"""AutoFuse's loss against its equations in float64, and each of its options."""

import copy

import pytest
import torch

from clip_fusion_loss import FusionObjective, LanguageDrivenFusionLoss, PatchGeometry
from conftest import build_clip, draw_images, make_criterion, named, same_transforms
from reference import Reference, cosine, entropy, grey, warp

STATIC = (
    "high resolution, salient objects, rich details",
    "low resolution, indistinct objects, minimal details",
)
OWN = ("a bright image", "a dark image")
EACH = [FusionObjective(OWN[0], opposite=OWN[1], opposite_weight=1), None]
SIZE = (56, 67)


@pytest.fixture(autouse=True)
def _vgg(vgg_without_a_file):
    """As the constructor loads one."""


def make(encoder, **options):
    options = {"num_patches": 6, "generator": torch.Generator().manual_seed(1), **options}
    return LanguageDrivenFusionLoss.autofuse(encoder=encoder, **options)


def draw(channels=(1, 1, 1)):
    """Images of which some patches have enough entropy in one source only."""
    fused, visible, infrared = draw_images(2, channels, SIZE, torch.float64)
    return fused, visible, infrared.flip(-1)


def run(criterion, images, **arguments):
    fused = images[0].detach().float().requires_grad_()
    sources = [image.float() for image in images[1:]]
    terms = criterion.terms(**named([fused, *sources]), **arguments)
    terms.total.sum().backward()
    return terms, fused.grad


class Equations:
    """As AutoFuse's repository computes them, one embedding at a time."""

    def __init__(self, tokenizer):
        words = ("a visible gray image",), ("an infrared image",)
        self.clip = Reference(build_clip(), tokenizer, STATIC[:1], *words)
        self.t_v, self.t_r = (self.clip.embed_texts(tokenizer, text) for text in words)
        self.text = lambda text: self.clip.embed_texts(tokenizer, (text,))

    def sum_of_texts(self, e, sources, texts, masks=(1.0, 1.0)):
        """P of the wanted texts and A of their opposites."""
        total = torch.zeros((), dtype=torch.float64)
        for wanted, opposite in texts:
            for text, is_opposite in ((self.text(wanted), False), (self.text(opposite), True)):
                exponent = 0.0
                for mask, source, of_source in zip(
                    masks, sources, (self.t_v, self.t_r), strict=True
                ):
                    distance = 1 - cosine(e - source, text - of_source)
                    exponent = exponent + 0.5 * mask * (2 - distance if is_opposite else distance)
                total = total + torch.exp(torch.as_tensor(exponent)) - 1
        return total

    def __call__(self, images, transforms, threshold):
        rows, masks_seen = [], set()
        for f, v, r, maps, own in zip(*images, transforms, (OWN, STATIC), strict=True):
            texts = (STATIC, own)
            e, *sources = (self.clip.embed_image(image) for image in (f, v, r))
            losses, kept = [], 0
            for matrix in maps:
                patches = [warp(grey(image), matrix, self.clip.size) for image in (v, r)]
                masks = tuple(float(entropy(patch) > threshold) for patch in patches)
                patch = self.clip.embed_image(warp(f, matrix, self.clip.size))
                losses.append(self.sum_of_texts(patch, sources, texts, masks))
                kept += any(masks)
                masks_seen.add(masks)
            whole = self.sum_of_texts(e, sources, texts)
            rows.append([whole, sum(losses) / len(losses), torch.tensor(kept / len(losses))])
        assert {(1.0, 0.0), (0.0, 1.0)} <= masks_seen, "sources must differ"
        return [torch.stack(column).double() for column in zip(*rows, strict=True)]


def features(network, image):
    """relu3_1 and relu4_2 of a (B, 3, H, W) image, as torchvision numbers its layers."""
    found = []
    for number, layer in enumerate(network):
        image = layer(image)
        if number in (11, 22):
            found.append(image)
    return found


@pytest.mark.parametrize("chunk", [1, 3, None])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_terms_and_gradient_equal_the_equations(encoder, tokenizer, chunk, reduction):
    images = draw(channels=(1, 3, 1))
    criterion = make(encoder, patch_chunk=chunk, reduction=reduction, min_patch_entropy=5.5)
    terms, gradient = run(criterion, images, objectives=EACH)

    images[0].requires_grad_()
    transforms = same_transforms(criterion, images[0])
    direction, patch, kept = Equations(tokenizer)(images, transforms, 5.5)
    network = copy.deepcopy(criterion.regularizer.network).double()
    fs, vs, rs = (features(network, image.expand(-1, 3, -1, -1)) for image in images)
    perceptual = sum(
        0.5 * (f - torch.maximum(v, r)).square().mean((1, 2, 3))
        for f, v, r in zip(fs, vs, rs, strict=True)
    )
    total = 2 * direction + 20 * patch + 17 * perceptual
    expected = {"direction": direction, "patch": patch, "regularizer": perceptual, "total": total}
    if reduction == "mean":
        expected, kept = {name: each.mean() for name, each in expected.items()}, kept.mean()
    expected["total"].sum().backward()
    torch.testing.assert_close(terms.kept.double(), kept)
    for name, wanted in expected.items():
        scale = 1e-5 * (24 if name == "total" else 1)
        torch.testing.assert_close(getattr(terms, name).double(), wanted, atol=scale, rtol=1e-5)
    scale = images[0].grad.abs().max()
    assert (gradient.double() - images[0].grad).abs().max() < 1e-5 * scale


def test_without_texts_of_their_own_images_have_the_shared_ones(encoder):
    criterion = make(encoder).eval()
    images = draw()
    expected = run(criterion, images, objectives=[None, None])
    for form in (None, [criterion.objective] * 2, criterion.embed([criterion.objective] * 2)):
        terms, gradient = run(criterion, images, objectives=form)
        torch.testing.assert_close(terms, expected[0])
        torch.testing.assert_close(gradient, expected[1])
    criterion.shared_weight = 0.0
    torch.testing.assert_close(2 * run(criterion, images)[0].direction, expected[0].direction)


def test_the_shared_objective_adds_its_linear_loss(encoder):
    criterion = make_criterion(encoder, objective="a haze", reduction="none").eval()
    images = draw()
    texts = ["a dark image", "a bright image"]
    own, _ = run(criterion, images, objectives=texts)
    shared, _ = run(criterion, images)
    criterion.shared_weight = 0.25
    both, _ = run(criterion, images, objectives=texts)
    for name in ("direction", "patch"):
        expected = getattr(own, name) + 0.25 * getattr(shared, name)
        torch.testing.assert_close(getattr(both, name), expected)
    regions = torch.zeros(2, *SIZE, dtype=torch.int64)
    labelled, _ = run(criterion, images, objectives=texts, regions=regions)
    again, _ = run(criterion, images, objectives=[texts[0]] * 2)
    torch.testing.assert_close(labelled, again)


@pytest.mark.parametrize("link", ["linear", "exponential"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_filters_and_links_in_chunks(encoder, link, chunk, encoded_batches):
    images = draw()
    options = {"patch_filter": "each", "link": link, "min_patch_entropy": 5.5, "num_patches": 9}
    options["patch_geometry"] = PatchGeometry(scale=(0.15, 0.25))
    whole = run(make_criterion(encoder, patch_chunk=None, **options), images)
    encoded_batches.clear()
    parts = run(make_criterion(encoder, patch_chunk=chunk, **options), images)
    assert max(encoded_batches[1:-1]) <= chunk
    torch.testing.assert_close(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-3, atol=1e-6)
    both = run(make_criterion(encoder, **{**options, "patch_filter": "both"}), images)
    assert both[0].kept < whole[0].kept


def test_a_link_is_of_each_text_and_embedding(encoder):
    images = [image.float() for image in draw()]
    linear = make_criterion(encoder, reduction="none").eval()
    opposite = FusionObjective(OWN[0], opposite=OWN[1], opposite_weight=0.5)
    distances = [linear.terms(**named(images), objectives=[text] * 2).direction for text in OWN]
    expected = distances[0].exp() - 1 + 0.5 * ((2 - distances[1]).exp() - 1)
    criterion = make_criterion(
        encoder, objective=opposite, link="exponential", reduction="none"
    ).eval()
    torch.testing.assert_close(criterion.terms(**named(images)).direction, expected)
    mixed = criterion.embed(OWN).mix({0: 2, 1: -1}), criterion.embed(OWN).mix([{0: 1, 1: -0.5}] * 2)
    criterion.set_objective(mixed[0])
    torch.testing.assert_close(criterion.terms(**named(images)).direction, 2 * expected)
    terms = criterion.terms(**named(images), objectives=mixed[1])
    torch.testing.assert_close(terms.direction, expected)


def test_other_precisions_and_eval(encoder):
    images = draw()
    criterion = make(encoder, min_patch_entropy=None).eval()
    exact = run(criterion, images, objectives=EACH)
    assert torch.equal(run(criterion, images, objectives=EACH)[0].total, exact[0].total)
    criterion.precision = "bf16"
    terms, gradient = run(criterion, images, objectives=EACH)
    assert gradient.isfinite().all()
    torch.testing.assert_close(terms.patch, exact[0].patch, rtol=0.05, atol=0)


def test_where_fused_is_a_source_nothing_is_infinite(encoder):
    _, visible, infrared = draw()
    _, gradient = run(make(encoder), [visible, visible, infrared])
    assert gradient.isfinite().all()
