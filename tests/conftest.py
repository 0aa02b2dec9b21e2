"""Small models and images that the tests share."""

import copy
import functools
from dataclasses import asdict
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from clip_fusion_loss import FrozenCLIP, IntensityGradientLoss, LanguageDrivenFusionLoss, functional

# The tests' tensors are so small that handing them to threads costs more than it gains.
torch.set_num_threads(1)

TORCH_VERSION = tuple(int(number) for number in torch.__version__.split(".")[:2])


def skip_without_double_backward():
    """Older versions of PyTorch, 2.4 among them, cannot differentiate `grid_sample` twice."""
    image = torch.rand(1, 1, 4, 4, requires_grad=True)
    sampled = nn.functional.grid_sample(image, torch.zeros(1, 2, 2, 2), align_corners=False)
    (slope,) = torch.autograd.grad(sampled.square().sum(), image, create_graph=True)
    try:
        slope.sum().backward()
    except RuntimeError as error:
        pytest.skip(str(error))


MODEL_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "width": 32, "heads": 2, "layers": 1},
}


@functools.cache
def _drawn_clip(seed: int) -> CLIP:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIP(**MODEL_CONFIG)


def build_clip(seed: int = 0) -> CLIP:
    """A CLIP with the real architecture and random weights, small enough for every test."""
    return copy.deepcopy(_drawn_clip(seed))  # drawing weights takes ten times as long


@pytest.fixture
def clip_model() -> CLIP:
    return build_clip()


@pytest.fixture
def small_architecture(monkeypatch) -> str:
    """`small` as a name that open_clip knows."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small", MODEL_CONFIG)
    return "small"


@pytest.fixture(scope="session")
def tokenizer():
    return open_clip.tokenizer.SimpleTokenizer(context_length=24)


@pytest.fixture
def encoder(clip_model, tokenizer) -> FrozenCLIP:
    return FrozenCLIP(clip_model, tokenizer)


@pytest.fixture
def encoded_batches(encoder, monkeypatch) -> list[int]:
    """How many images `encoder` was given, call by call; grows as it is used."""
    sizes: list[int] = []
    encode = encoder.encode_image

    def note(images, **options):
        sizes.append(len(images))
        return encode(images, **options)

    monkeypatch.setattr(encoder, "encode_image", note)
    return sizes


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of methods by which the host read a tensor, but for the maps, drawn on the host."""
    found: list[str] = []
    for name in ("item", "__bool__", "__int__", "__float__", "nonzero", "tolist", "cpu"):

        def read(tensor, *arguments, name=name, original=getattr(torch.Tensor, name)):
            if tensor.shape != (6,):
                found.append(name)
            return original(tensor, *arguments)

        monkeypatch.setattr(torch.Tensor, name, read)
    return found


@pytest.fixture
def vgg_without_a_file(monkeypatch):
    """VGG-19 as `VGGMaxFeatureLoss` takes it, with random weights."""

    def features(_):
        return make_layers(cfgs["E"][:14], batch_norm=False)[:23]

    monkeypatch.setattr("clip_fusion_loss.regularizers._vgg19_features", features)


@pytest.fixture(scope="session")
def real_pairs() -> Path:
    """A folder of real infrared-visible pairs beside the checkout, where there is one."""
    folder = Path(__file__).parents[2] / "shared" / "pairs"
    if not folder.is_dir():
        pytest.skip(f"needs real pairs in {folder}")
    return folder


def draw_images(batch=2, channels=(1, 1, 1), size=(40, 48), dtype=torch.float32, seed=0):
    """Fused, visible and infrared images that differ and that partly pass the entropy filter.

    Smooth at the left and noisy at the right, so that patches have anything from few to many
    grey levels.
    """
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 1, size[1], dtype=torch.float64).expand(*size)
    images = []
    for count in channels:
        noise = torch.rand(batch, count, *size, generator=generator, dtype=torch.float64)
        images.append((0.2 + 0.6 * ramp * noise).to(dtype))
    return images


def named(images, **others):
    """Images, or what stands in their place, as the loss takes them."""
    return {**dict(zip(("fused", "visible", "infrared"), images, strict=True)), **others}


def make_criterion(encoder, **options) -> LanguageDrivenFusionLoss:
    """A loss with few patches, the same ones each time it is made."""
    options = {"num_patches": 6, "generator": torch.Generator().manual_seed(1), **options}
    return LanguageDrivenFusionLoss(encoder=encoder, **options)


def same_transforms(criterion, images, seed=1):
    """The maps that `criterion` draws next for `images` from a generator seeded with `seed`."""
    short = round(32 / criterion.patch_geometry.scale[0])
    size = functional.shrink_images(images, short).shape[-2:]
    return functional.random_patch_transforms(
        len(images),
        criterion.num_patches,
        tuple(size),
        **asdict(criterion.patch_geometry),
        generator=torch.Generator().manual_seed(seed),
    )


class Fusion(nn.Module):
    """A user's network, here as small as one can be."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, visible, infrared):
        return self.convolution(torch.cat([visible, infrared], 1)).sigmoid()


class Trainer(nn.Module):
    """A module that holds the criterion beside its network, as many programs do."""

    def __init__(self, criterion=None):
        super().__init__()
        self.network = Fusion()
        self.criterion = criterion

    def forward(self, visible, infrared, objectives=None):
        images = named([self.network(visible, infrared), visible, infrared])
        return self.criterion(**images, objectives=objectives)


def gradients(module):
    return [parameter.grad.clone() for parameter in module.parameters()]


@pytest.fixture
def trainer(encoder) -> Trainer:
    # torch's own generator: another one does not survive the way to a spawned process.
    criterion = make_criterion(encoder, regularizer=IntensityGradientLoss(), generator=None)
    torch.manual_seed(0)
    return Trainer(criterion)


@pytest.fixture
def sources():
    return draw_images()[1:]


def value_and_gradients(trainer, sources):
    trainer.zero_grad()
    torch.manual_seed(1)
    loss = trainer(*sources)
    loss.backward()
    return loss.detach(), gradients(trainer)
