"""Everything is made on the device of the images: shown with fake CUDA tensors, without a GPU.

They have a device and no data, and an operation on tensors of two devices is an error. A backward
pass needs a real GPU.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torchvision.models.vgg import cfgs, make_layers

from clip_fusion_loss import (
    IntensityGradientLoss,
    StructureLoss,
    VGGMaxFeatureLoss,
)
from conftest import TORCH_VERSION, draw_images, make_criterion, named

pytestmark = pytest.mark.skipif(
    TORCH_VERSION < (2, 10), reason="older releases ask the driver about fake CUDA tensors"
)

CUDA = torch.device("cuda:0")


class CudaGenerator(torch.Generator):
    """Says that it is on a GPU, where a real one could not be made."""

    device = CUDA


@pytest.fixture(autouse=True)
def fake(monkeypatch, encoder):
    """A world of fake tensors in which what needs data has the answer it may have.

    The encoder is made outside: its weights are looked at.
    """
    # No tensors without data have entries that are not zero: say that all are.
    monkeypatch.setattr(
        torch.Tensor, "nonzero", lambda x: torch.arange(x.numel(), device=x.device)[:, None]
    )
    # Nor do values decide anything: no two texts are alike.
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda _: False)
    whole = FakeTensor.tolist
    monkeypatch.setattr(
        FakeTensor, "tolist", lambda x: [1.0] * len(x) if x.is_floating_point() else whole(x)
    )
    # The gradient of a chunk, which the forward pass takes.
    monkeypatch.setattr(
        torch.autograd, "grad", lambda outputs, inputs, slopes: (torch.zeros_like(inputs),)
    )
    # The text tower has data, as its tokens are looked at.
    embed = encoder._embed

    def embed_with_data(texts):
        with unset_fake_temporarily():
            return embed(texts)

    monkeypatch.setattr(encoder, "_embed", embed_with_data)
    # Autocast switches itself off without a GPU.
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.fixture
def criterion(encoder):
    criterion = make_criterion(encoder, generator=None).to(CUDA)
    criterion._values_checked = True  # a look at the data
    return criterion


@pytest.fixture
def images():
    fused, visible, infrared = (image.to(CUDA) for image in draw_images())
    return fused.requires_grad_(), visible, infrared


def check(criterion, images, **options):
    terms = criterion.terms(**named(images, **options))
    assert all(term.device == CUDA for term in terms)
    assert terms.total.requires_grad
    assert terms.total.dtype == torch.float32


@pytest.mark.parametrize(
    ("chunk", "entropy", "precision"),
    [("auto", None, "auto"), (None, 6.0, "fp32"), (1, 6.0, "bf16"), ("auto", 6.0, "fp16")],
)
def test_forward(criterion, images, chunk, entropy, precision):
    criterion.patch_chunk, criterion.min_patch_entropy = chunk, entropy
    criterion.precision = precision
    check(criterion, images)


@pytest.mark.parametrize("generator", [torch.Generator(), CudaGenerator()], ids=["cpu", "cuda"])
def test_generators(criterion, images, generator):
    criterion.generator = generator
    check(criterion, images)


@pytest.mark.parametrize("regularizer", [IntensityGradientLoss, StructureLoss, VGGMaxFeatureLoss])
def test_regularizers(criterion, images, regularizer, monkeypatch):
    def features(_):
        return make_layers(cfgs["E"][:14], batch_norm=False)[:23]

    monkeypatch.setattr("clip_fusion_loss.regularizers._vgg19_features", features)
    with unset_fake_temporarily():  # moving turns weights into fake ones, which cannot be moved
        criterion.regularizer = regularizer()
    check(criterion.to(CUDA), images)


def test_sources_embedded_once(criterion, images):
    sources = criterion.embed_sources(visible=images[1], infrared=images[2])
    assert all(embedding.device == CUDA for embedding in sources)
    check(criterion, images, sources=sources)


@pytest.mark.parametrize("channels", [(3, 1, 3), (1, 3, 1)])
def test_colour_other_sizes_and_ranges(criterion, channels):
    criterion.data_range = (-1, 1)
    criterion._values_checked = True
    images = [image.to(CUDA) for image in draw_images(channels=channels, size=(130, 97))]
    images[0].requires_grad_()
    check(criterion, images)


def test_prompt_swap(criterion, images):
    criterion.set_objective("a blurry dark image")
    assert criterion.fusion_model.visible_direction.device == CUDA
    check(criterion, images)


# Copying fake tensors makes PyTorch warn of itself.
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("form", ["texts", "names", "indices", "a list"])
def test_an_objective_for_each_image(criterion, images, form):
    texts = ["a blurry dark image", "a sharp image"]
    bank = criterion.embed(dict(zip("ab", texts, strict=True)))
    objectives = {
        "texts": lambda: texts,
        "names": lambda: bank[["b", "a"]],
        "indices": lambda: bank[torch.zeros(2, dtype=torch.int64, device=CUDA)],
        "a list": lambda: bank[[1, 0]],
    }[form]()
    check(criterion, images, objectives=objectives)
    assert bank.text_direction.device == CUDA
    criterion.objective = bank["a"]
    check(criterion, images)


def test_images_elsewhere_are_refused(criterion, images):
    with pytest.raises(ValueError, match="cuda:0"):
        criterion(**named([image.cpu() for image in images]))


def test_a_tensor_on_the_wrong_device_is_an_error(criterion, images):
    """That these tests can fail."""
    criterion.fusion_model.visible_direction = criterion.fusion_model.visible_direction.cpu()
    with pytest.raises(RuntimeError, match="device"):
        criterion(**named(images))
