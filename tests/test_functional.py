"""Each formula against its definition, in float64 and in loops."""

import math

import numpy as np
import pytest
import torch

from clip_fusion_loss import functional
from reference import cosine, entropy, resize, unit, warp


def vectors(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
    )


def test_direction_is_the_unit_difference():
    start, end = vectors(5, 8), vectors(5, 8, seed=1)
    expected = torch.stack([unit(b - a) for a, b in zip(start, end, strict=True)])
    torch.testing.assert_close(functional.direction(start, end), expected)


@pytest.mark.parametrize("gap", [0.0, 1e-8, 1e-5, 1e-3, 0.1])
def test_direction_gradient_is_bounded_between_equal_and_near_vectors(gap):
    start = vectors(1, 8)
    end = (start + gap * vectors(1, 8, seed=1)).requires_grad_()
    step = functional.direction(start, end)
    step.sum().backward()
    assert (step.norm() > 0) == (gap > 0)
    assert end.grad.isfinite().all()
    assert end.grad.norm() <= math.sqrt(8) / functional.DIRECTION_EPS


@pytest.mark.parametrize("shape", [(8,), (4, 8)], ids=["one for all", "one for each embedding"])
def test_direction_loss(shape):
    e, v_v, v_r = vectors(4, 8), vectors(4, 8, seed=1), vectors(4, 8, seed=2)
    d_v, d_r = vectors(*shape, seed=3), vectors(*shape, seed=4)
    e.requires_grad_()
    expected = torch.stack(
        [
            0.5 * (1 - cosine(a - v, of_v)) + 0.5 * (1 - cosine(a - r, of_r))
            for a, v, r, of_v, of_r in zip(
                e, v_v, v_r, d_v.expand(4, 8), d_r.expand(4, 8), strict=True
            )
        ]
    )
    actual = functional.direction_loss(e, v_v, v_r, d_v, d_r)
    torch.testing.assert_close(actual, expected)
    slopes = [torch.autograd.grad(loss.sum(), e)[0] for loss in (actual, expected)]
    torch.testing.assert_close(*slopes)


def test_mean_direction():
    d_v, d_r = vectors(5, 8), vectors(5, 8, seed=1)
    expected = torch.stack([unit(unit(a) + unit(b)) for a, b in zip(d_v, d_r, strict=True)])
    torch.testing.assert_close(functional.mean_direction(d_v, d_r), expected)
    torch.testing.assert_close(functional.mean_direction(d_v, d_v), d_v)
    # Opposite ones have no direction between them, and zero is none.
    assert not functional.mean_direction(d_v, -d_v).any()
    assert not functional.mean_direction(torch.zeros(8), torch.zeros(8)).any()


def test_similarity_loss():
    e, v_v, v_r = vectors(4, 8), vectors(4, 8, seed=1), vectors(4, 8, seed=2)
    expected = [
        0.5 * (1 - cosine(e[i], v_v[i])) + 0.5 * (1 - cosine(e[i], v_r[i])) for i in range(4)
    ]
    torch.testing.assert_close(functional.similarity_loss(e, v_v, v_r), torch.stack(expected))


def test_mean_over_patches():
    kept = torch.tensor([[True, False, True, False], [False] * 4, [True] * 4])
    sums = torch.tensor([3.0, 0.0, 18.0])
    all_, only_kept = (functional.mean_over_patches(sums, kept, r) for r in ("all", "kept"))
    torch.testing.assert_close(all_, torch.tensor([0.75, 0.0, 4.5]))
    torch.testing.assert_close(only_kept, torch.tensor([1.5, 0.0, 4.5]))


def test_total_loss():
    terms = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])]
    torch.testing.assert_close(functional.total_loss(terms, (2, 10)), torch.tensor([32.0, 54.0]))


class TestPatchEntropy:
    def test_equals_the_histogram_definition(self):
        patches = torch.rand(3, 2, 20, 30, generator=torch.Generator().manual_seed(0)) ** 2
        expected = [[entropy(patch) for patch in row] for row in patches]
        actual = functional.patch_entropy(patches).double()
        torch.testing.assert_close(actual, torch.tensor(expected).double(), atol=1e-5, rtol=0)

    @pytest.mark.parametrize(
        ("patch", "bits"),
        [
            (torch.full((16, 16), 0.3), 0.0),
            (torch.full((16, 16), 1.0), 0.0),
            (torch.arange(256).view(16, 16) / 255, 8.0),
            (torch.arange(64).view(8, 8).remainder(2).float(), 1.0),
            (torch.tensor([[-3.0, 0.0], [1.0, 40.0]]), 1.0),
        ],
        ids=["mid-grey", "white", "all levels", "two levels", "values outside in the end bins"],
    )
    def test_of_known_patches(self, patch, bits):
        torch.testing.assert_close(functional.patch_entropy(patch), torch.tensor(bits))


class TestPatchTransforms:
    @pytest.mark.parametrize("lean", [0, 4])
    def test_composition(self, lean):
        """The closed form equals the inverse of the composed motions, built as 3 x 3 matrices."""
        height, width, seed = 50, 80, 3
        draws = torch.rand(8, 2, 3, generator=torch.Generator().manual_seed(seed)).double()
        others = {"rotation": 7, "shift": 0.2, "zoom": 2, "shear": 3} if lean else {}
        maps = functional.random_patch_transforms(
            2, 3, (height, width), scale=(0.4, 0.9), vertical_shear=lean, **others,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        rotation, shifting, most, shear = others.values() or (5, 0.1, 1.5, 5)
        for b in range(2):
            for n in range(3):
                side, left, top, turn, shift, zoom, slope, sag = draws[:, b, n].tolist()
                side = (0.4 + 0.5 * side) * 50
                x0, y0 = left * (width - side), top * (height - side)
                angle, slant, sag = (
                    math.radians(largest * (2 * part - 1))
                    for largest, part in ((rotation, turn), (shear, slope), (lean, sag))
                )
                zoom = 1 + (most - 1) * zoom
                motion = (
                    np.array([[1, 0, 0], [0, 1, shifting * (2 * shift - 1) * side], [0, 0, 1]])
                    @ np.array(
                        [
                            [math.cos(angle), -math.sin(angle), 0],
                            [math.sin(angle), math.cos(angle), 0],
                            [0, 0, 1],
                        ]
                    )
                    @ np.array([[1, 0, 0], [math.tan(sag), 1, 0], [0, 0, 1]])
                    @ np.array([[1, math.tan(slant), 0], [0, 1, 0], [0, 0, 1]])
                    @ np.diag([zoom, zoom, 1])
                )
                # Patch coordinates -> pixels about the patch's centre -> back through the
                # motion -> pixels of the image -> image coordinates.
                to_pixels = np.diag([side / 2, side / 2, 1])
                place = np.array([[1, 0, x0 + side / 2], [0, 1, y0 + side / 2], [0, 0, 1]])
                to_image = np.array([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]])
                expected = to_image @ place @ np.linalg.inv(motion) @ to_pixels
                np.testing.assert_allclose(maps[b, n], expected[:2], atol=1e-6)


class TestSamplePatches:
    def test_equals_the_reference(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(2, 3, 30, 41, generator=generator, dtype=torch.float64)
        maps = functional.random_patch_transforms(2, 5, (30, 41), generator=generator)
        patches = functional.sample_patches(images, maps, (12, 16))
        assert patches.shape == (2, 5, 3, 12, 16)
        for b in range(2):
            for n in range(5):
                expected = warp(images[b], maps[b, n], (12, 16))
                torch.testing.assert_close(patches[b, n], expected, atol=1e-9, rtol=0)


def test_resize_images_is_antialiased_bilinear():
    images = torch.rand(2, 3, 50, 37, dtype=torch.float64)
    expected = torch.stack([resize(image, (16, 64)) for image in images])
    torch.testing.assert_close(functional.resize_images(images, (16, 64)), expected)


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 100), (32, 50)), ((32, 90), (32, 90)), ((20, 30), (20, 30))]
)
def test_shrink_images(size, expected):
    assert functional.shrink_images(torch.rand(1, 1, *size), 32).shape[-2:] == expected


def test_match_channels():
    colour = torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
    luma = functional.match_channels(colour, 1)
    torch.testing.assert_close(luma.item(), 0.299 + 0.5 * 0.587 + 0.25 * 0.114)
    assert functional.match_channels(luma, 3).shape == (1, 3, 1, 1)
    assert functional.match_channels(colour, 3) is colour


def test_intensity_gradient_loss():
    fused, visible, infrared = (torch.rand(2, 1, 6, 7, dtype=torch.float64) for _ in range(3))
    expected = []
    for f, v, r in zip(fused.numpy(), visible.numpy(), infrared.numpy(), strict=True):
        value = np.abs(f - np.maximum(v, r)).mean()
        for axis in (1, 2):
            gf, gv, gr = (np.diff(image, axis=axis) for image in (f, v, r))
            value += 3 * np.abs(gf - np.where(np.abs(gv) >= np.abs(gr), gv, gr)).mean()
        expected.append(value)
    actual = functional.intensity_gradient_loss(fused, visible, infrared, 3)
    torch.testing.assert_close(actual, torch.tensor(expected))


def field_of(image):
    """Forward differences along both axes, (C, H, W) -> (2 C, H - 1, W - 1)."""
    across, down = np.diff(image, axis=2)[:, :-1], np.diff(image, axis=1)[:, :, :-1]
    return np.concatenate([across, down])


def clean(field):
    """The field without what is no stronger than the noise of its flattest tenth."""
    squares = (field**2).sum(0)
    rows, columns = (range(length) for length in squares.shape)
    energy = np.array(
        [
            [squares[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4].mean() for x in columns]
            for y in rows
        ]
    )
    return field * np.clip(1 - 4 * np.quantile(energy, 0.1) / energy, 0, 1)


def structure_of(f, v, r, window, flat_energy, layout_weight, gradient_weight, above_noise):
    """`structure_loss` of one sample of (C, H, W) arrays, window by window."""
    of_f, of_v, of_r = map(field_of, (f, v, r))
    if above_noise:
        of_v, of_r = clean(of_v), clean(of_r)
    g = np.where(np.abs(of_v) >= np.abs(of_r), of_v, of_r)
    gradient = np.abs(of_f - g).mean()
    of_f, g = (field / np.sqrt((field**2).mean()) for field in (of_f, g))
    height, width = min(window, g.shape[1]), min(window, g.shape[2])
    losses, weights = [], []
    for top in range(g.shape[1] - height + 1):
        for left in range(g.shape[2] - width + 1):
            seen = (slice(None), slice(top, top + height), slice(left, left + width))
            ff, gg, fg = (
                (a[seen] * b[seen]).mean() + flat_energy
                for a, b in ((of_f, of_f), (g, g), (of_f, g))
            )
            losses.append(1 - fg / np.sqrt(ff * gg))
            weights.append(gg ** (0.25 if above_noise else 0.5))
    edges = np.average(losses, weights=weights)

    def means(image):
        height, width = min(16, image.shape[1]), min(16, image.shape[2])
        return np.array(
            [
                channel[top : top + height, left : left + width].mean()
                for channel in image
                for top in range(0, image.shape[1] - height + 1, 8)
                for left in range(0, image.shape[2] - width + 1, 8)
            ]
        )

    of_f, of_maximum = (m - m.mean() for m in (means(f), means(np.maximum(v, r))))
    scale = np.linalg.norm(of_f) * np.linalg.norm(of_maximum)
    layout = 1 - of_f @ of_maximum / scale
    return edges + layout_weight * layout + gradient_weight * gradient


class TestStructureLoss:
    @pytest.mark.parametrize("size", [(24, 33), (41, 24)])
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("further", [(0.0, False), (0.0, True), (3.0, False), (2.0, True)])
    def test_equals_the_definition(self, size, channels, further):
        # Texture that fades to one side, so that the flattest tenth is much weaker than the rest.
        images = torch.rand(3, 2, channels, *size, dtype=torch.float64)
        images = images * torch.linspace(0.1, 1, size[1], dtype=torch.float64)
        options = {"window": 7, "flat_energy": 0.1, "layout_weight": 0.7}
        options |= dict(zip(("gradient_weight", "above_noise"), further, strict=True))
        expected = [structure_of(*sample, **options) for sample in images.transpose(0, 1).numpy()]
        actual = functional.structure_loss(*images, **options)
        torch.testing.assert_close(actual, torch.tensor(expected))

    def test_gain_and_bias_of_the_fused_image_change_nothing(self):
        ramp = torch.linspace(0, 0.5, 40, dtype=torch.float64)  # contrast on a coarse scale, too
        fused, visible, infrared = ramp + 0.5 * torch.rand(3, 2, 1, 40, 40, dtype=torch.float64)
        expected = functional.structure_loss(fused, visible, infrared)
        for gain, bias in ((0.1, 0.0), (0.4, 0.5), (3.0, -0.2)):
            actual = functional.structure_loss(gain * fused + bias, visible, infrared)
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)

    @pytest.mark.parametrize("size", [(2, 2), (16, 16), (17, 40)])
    def test_constant_and_equal_images(self, size):
        noise = torch.rand(1, 1, *size)
        black, white = torch.zeros_like(noise), torch.ones_like(noise)
        for images in (
            [black] * 3, [white, black, black], [noise] * 3, [black, noise, noise],
            [noise, black, white], [black, black, noise],
        ):  # fmt: skip
            fused = images[0].clone().requires_grad_()
            loss = functional.structure_loss(fused, *images[1:])
            loss.backward()
            assert loss.isfinite()
            assert fused.grad.isfinite().all()
        assert functional.structure_loss(black, black, black) < 1e-6
        assert functional.structure_loss(noise, noise, noise) < 1e-5


def test_max_feature_loss():
    fused, visible, infrared = ([torch.rand(2, 3, 4, 4), torch.rand(2, 5, 2, 2)] for _ in range(3))
    expected = torch.zeros(2)
    for f, v, r in zip(fused, visible, infrared, strict=True):
        for b in range(2):
            expected[b] += ((f[b] - torch.maximum(v[b], r[b])) ** 2).mean()
    torch.testing.assert_close(functional.max_feature_loss(fused, visible, infrared), expected)


def test_no_formula_broadcasts_an_image_away():
    """Nothing is checked here, so shapes that do not fit must fail in PyTorch."""
    image, other = torch.rand(2, 1, 20, 20), torch.rand(2, 1, 20, 19)
    for formula in (functional.intensity_gradient_loss, functional.structure_loss):
        with pytest.raises(RuntimeError):
            formula(image, image, other)
    with pytest.raises(ValueError, match="longer than argument"):
        functional.total_loss([image, image], [1.0])
    with pytest.raises((RuntimeError, ValueError)):
        functional.match_channels(image.expand(-1, 2, -1, -1), 1)
