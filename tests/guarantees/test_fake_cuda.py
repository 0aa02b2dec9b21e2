"""Everything is made on the device of the images: shown with fake CUDA tensors, without a GPU.

They have a device and no data, and an operation on tensors of two devices is an error. A backward
pass needs a real GPU.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from clip_fusion_loss import IntensityGradientLoss, StructureLoss, VGGMaxFeatureLoss
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


OPTIONS = [
    {"patch_chunk": "auto", "min_patch_entropy": None},
    {"patch_chunk": None, "precision": "fp32"},
    {"patch_chunk": 1, "precision": "bf16"},
    {"precision": "fp16"},
    {"generator": torch.Generator()},
    {"generator": CudaGenerator()},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_options(criterion, images, options):
    for name, value in options.items():
        setattr(criterion, name, value)
    check(criterion, images)


@pytest.mark.usefixtures("vgg_without_a_file")
@pytest.mark.parametrize("regularizer", [IntensityGradientLoss, StructureLoss, VGGMaxFeatureLoss])
def test_regularizers(criterion, images, regularizer):
    with unset_fake_temporarily():  # moving turns weights into fake ones, which cannot be moved
        criterion.regularizer = regularizer()
    check(criterion.to(CUDA), images)


@pytest.mark.parametrize("channels", [(3, 1, 3), (1, 3, 1)])
def test_colour_other_sizes_and_ranges_and_sources_embedded_once(criterion, channels):
    criterion.data_range = (-1, 1)
    criterion._values_checked = True
    images = [image.to(CUDA) for image in draw_images(channels=channels, size=(130, 97))]
    images[0].requires_grad_()
    check(criterion, images)
    sources = criterion.embed_sources(visible=images[1], infrared=images[2])
    assert all(embedding.device == CUDA for embedding in sources)
    check(criterion, images, sources=sources)


# Copying fake tensors makes PyTorch warn of itself.
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("form", ["texts", "names", "indices"])
def test_an_objective_for_each_image(criterion, images, form):
    texts = ["a blurry dark image", "a sharp image"]
    bank = criterion.embed(dict(zip("ab", texts, strict=True)))
    indices = torch.zeros(2, dtype=torch.int64, device=CUDA)
    forms = {"texts": texts, "names": bank[["b", "a"]], "indices": bank[indices]}
    check(criterion, images, objectives=forms[form])
    assert bank.text_direction.device == CUDA
    criterion.objective = bank["a"]
    assert criterion.fusion_model.visible_direction.device == CUDA
    check(criterion, images)


def test_labels_of_regions_are_not_read(criterion, images):
    bank = criterion.embed(["a blurry dark image", "a sharp image"])
    labels = torch.zeros(2, *images[0].shape[2:], dtype=torch.int64, device=CUDA)
    check(criterion, images, objectives=bank, regions=labels)


def test_a_tensor_on_the_wrong_device_is_an_error(criterion, images):
    """That these tests can fail."""
    criterion.fusion_model.visible_direction = criterion.fusion_model.visible_direction.cpu()
    with pytest.raises(RuntimeError, match="device"):
        criterion(**named(images))
