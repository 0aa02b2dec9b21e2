"""The terms beside the language."""

import pytest
import torch
from torchvision.models import vgg19

from clip_fusion_loss import IntensityGradientLoss, StructureLoss, VGGMaxFeatureLoss, functional
from conftest import draw_images


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    return vgg19().features.eval()


@pytest.fixture(scope="module")
def weights(vgg, tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save({f"features.{k}": v for k, v in vgg.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def loss(weights):
    return VGGMaxFeatureLoss(weights)


PAPERS = {(1, 1): 1.0, (2, 1): 1.0, (3, 2): 1.0}  # (pools before, ReLUs since)


@pytest.mark.parametrize(
    ("channels", "layers", "wanted"),
    [
        ((1, 1, 1), None, PAPERS),
        ((3, 1, 3), None, PAPERS),
        ((1, 3, 1), None, PAPERS),
        ((1, 1, 1), {"relu4_2": 0.5, "relu1_1": 2}, {(0, 1): 2.0, (3, 2): 0.5}),
        ((1, 1, 1), {"relu5_4": 0.25, "relu4_4": 1}, {(4, 4): 0.25, (3, 4): 1.0}),
    ],
)
def test_vgg_equals_the_reference(weights, vgg, channels, layers, wanted):
    loss = VGGMaxFeatureLoss(weights, **({} if layers is None else {"layers": layers}))
    images = draw_images(channels=channels, dtype=torch.float64)
    expected = torch.zeros(2, dtype=torch.float64)
    of_images = [image.expand(-1, 3, -1, -1) for image in images]
    relus = pools = 0
    for layer in vgg.double():
        of_images = [layer(image) for image in of_images]
        if isinstance(layer, torch.nn.MaxPool2d):
            pools, relus = pools + 1, 0
        if isinstance(layer, torch.nn.ReLU):
            relus += 1
            if (pools, relus) in wanted:
                f, v, r = of_images
                part = (f - torch.maximum(v, r)).square().mean((1, 2, 3))
                expected += wanted[pools, relus] * part
    vgg.float()
    torch.testing.assert_close(
        loss(*(image.float() for image in images)).double(), expected, rtol=1e-4, atol=1e-7
    )


def test_vgg_trains_only_the_fused_image_and_is_in_nobodys_checkpoint(loss):
    images = [image.requires_grad_() for image in draw_images()]
    loss(*images).sum().backward()
    assert images[0].grad.abs().sum() > 0
    assert images[1].grad is images[2].grad is None
    assert not loss.state_dict()
    assert not [*loss.parameters(), *loss.buffers()]


CONTENTS = {
    "of another model": {"a": torch.zeros(1)},
    "a list": [1],
    "an object": torch.nn.ReLU(),
    "a web page": b"<!DOCTYPE html><html>404</html>",
    "empty": b"",
    "cut short": -100,
}


@pytest.mark.parametrize(
    ("content", "cached"), [*((content, False) for content in CONTENTS), ("cut short", True)]
)
def test_vgg_damaged_file(tmp_path, weights, content, cached, monkeypatch):
    """The file is named, and torch's advice to load unsafely is not passed on."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"
    path.parent.mkdir(parents=True)
    what = CONTENTS[content]
    if isinstance(what, int):
        path.write_bytes(weights.read_bytes()[:what])
    elif isinstance(what, bytes):
        path.write_bytes(what)
    else:
        torch.save(what, path)
    with pytest.raises(ValueError, match=r"`weights` must hold .*vgg19.*replace it") as caught:
        VGGMaxFeatureLoss(None if cached else path)
    message = str(caught.value)
    assert str(path) in message
    assert "weights_only" not in message
    assert "\n" not in message
    assert ("download it again" in message) == cached
    assert caught.value.__suppress_context__


def test_vgg_comes_from_the_cache(tmp_path, weights, loss, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth").symlink_to(weights)
    images = draw_images()
    assert torch.equal(VGGMaxFeatureLoss()(*images), loss(*images))


def test_vgg_does_not_depend_on_what_is_around_it(weights, loss):
    images = draw_images()
    expected, state = loss(*images), torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode():
            made = VGGMaxFeatureLoss(weights)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(made(*images), expected)
    assert torch.equal(torch.get_rng_state(), state)
    fused = images[0].requires_grad_()
    made(fused, *images[1:]).sum().backward()
    assert fused.grad.any()


def test_vgg_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(FileNotFoundError, match=r"vgg19-dcbb9e9d.pth.*weights="):
        VGGMaxFeatureLoss()


def refuse(*_, **__):
    raise OSError("no network")


STRUCTURE = {"window": 5, "gradient_weight": 1.5, "above_noise": True}


@pytest.mark.parametrize(
    ("kind", "function", "options"),
    [
        (IntensityGradientLoss, functional.intensity_gradient_loss, {"gradient_weight": 3.0}),
        (StructureLoss, functional.structure_loss, STRUCTURE),
    ],
)
@pytest.mark.parametrize("channels", [(1, 1, 1), (1, 3, 1), (3, 1, 1), (3, 3, 3)])
def test_sources_are_brought_to_the_channels_of_fused(kind, function, options, channels):
    fused, visible, infrared = draw_images(channels=channels)
    matched = [functional.match_channels(image, channels[0]) for image in (visible, infrared)]
    losses = kind(**options)(fused, visible, infrared)
    assert losses.shape == (2,)
    torch.testing.assert_close(losses, function(fused, *matched, **options))


@pytest.mark.parametrize("module", [IntensityGradientLoss(), StructureLoss()])
def test_other_precisions_of_the_images(module):
    images = [image.bfloat16() for image in draw_images(size=(40, 40))]
    exact = module(*(image.double() for image in images))
    assert exact.dtype == torch.float64
    torch.testing.assert_close(module(*(image.float() for image in images)).double(), exact)
    torch.testing.assert_close(module(*images).double(), exact, rtol=0.05, atol=0)
