"""What the process around the loss has set does not change it."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from clip_fusion_loss import (
    EmbeddedFusionModel,
    FrozenCLIP,
    FusionObjective,
    LanguageDrivenFusionLoss,
    functional,
)
from conftest import build_clip, draw_images, make_criterion, named


def build() -> LanguageDrivenFusionLoss:
    return LanguageDrivenFusionLoss.tiny(
        num_patches=3, min_patch_entropy=5.0, generator=torch.Generator("cpu").manual_seed(1)
    )


def step(criterion, images):
    """Value and gradient, with the same patches each time."""
    criterion.generator.manual_seed(1)
    fused = images[0].detach().clone().requires_grad_()
    loss = criterion(**named([fused, *images[1:]]))
    loss.backward()
    return loss.detach(), fused.grad


@pytest.fixture(scope="module")
def images():
    return draw_images(batch=1, size=(64, 72))


@pytest.fixture(scope="module")
def expected(images):
    criterion = build()
    first = step(criterion, images)
    criterion.set_objective("a dark image")
    return first, step(criterion, images)


@pytest.fixture(scope="module")
def made():
    return build()


@pytest.fixture
def criterion(made):
    """As `build` makes it; only what is made under a setting has to be made anew."""
    made.set_objective(FusionObjective())
    return made


@contextmanager
def setting(change, back):
    change()
    try:
        yield
    finally:
        back()


def default_dtype(dtype):
    return setting(
        lambda: torch.set_default_dtype(dtype), lambda: torch.set_default_dtype(torch.float32)
    )


#: Under which the loss is called with a gradient, and those under which there is none.
SETTINGS = {
    "float64 by default": lambda: default_dtype(torch.float64),
    "float16 by default": lambda: default_dtype(torch.float16),
    "another default device": lambda: setting(
        lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)
    ),
    "another device in a block": lambda: torch.device("meta"),
    "deterministic": lambda: setting(
        lambda: torch.use_deterministic_algorithms(True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "anomalies looked for": lambda: torch.autograd.set_detect_anomaly(True, check_nan=True),
}
WITHOUT_GRADIENT = {"inference mode": torch.inference_mode, "no grad": torch.no_grad}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
class TestSettingsOfTorch:
    @pytest.mark.parametrize("name", [*SETTINGS, *WITHOUT_GRADIENT, "autocast"])
    def test_what_is_built_under_them_is_the_same_afterwards(self, name, images, expected):
        autocast = {"autocast": lambda: torch.autocast("cpu", torch.bfloat16)}
        with (SETTINGS | WITHOUT_GRADIENT | autocast)[name]():
            criterion = build()
        first = step(criterion, images)
        with (SETTINGS | WITHOUT_GRADIENT | autocast)[name]():
            criterion.set_objective("a dark image")
        torch.testing.assert_close((first, step(criterion, images)), expected, rtol=0, atol=0)

    @pytest.mark.parametrize("name", SETTINGS)
    def test_calls_under_them_are_the_same(self, name, criterion, images, expected):
        with SETTINGS[name]():
            first = step(criterion, images)
            criterion.set_objective("a dark image")
            torch.testing.assert_close((first, step(criterion, images)), expected, rtol=0, atol=0)

    @pytest.mark.parametrize("name", WITHOUT_GRADIENT)
    def test_values_without_a_gradient_are_the_same(self, name, criterion, images, expected):
        criterion.generator.manual_seed(1)
        with WITHOUT_GRADIENT[name]():
            value = criterion(**named(images))
        assert torch.equal(value, expected[0][0])
        # The step after such a value, as after a validation.
        torch.testing.assert_close(step(criterion, images), expected[0], rtol=0, atol=0)

    def test_places_and_cosines_are_no_matrix_products(self):
        """So that nothing may round them: not autocast, TF32 or the matmul precision."""
        operations = set()

        class Noting(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                operations.add(function.overloadpacket.__name__)
                return function(*args, **(kwargs or {}))

        with Noting():
            images = torch.rand(2, 1, 40, 40)
            maps = functional.random_patch_transforms(2, 3, (40, 40))
            functional.patch_entropy(functional.sample_patches(images, maps, (20, 30)))
            vectors = torch.rand(5, 2, 8)
            functional.direction_loss(*vectors[:3], vectors[3, 0], vectors[4, 0])
            functional.similarity_loss(*vectors[:3])
        assert "grid_sampler_2d" in operations
        products = {"mm", "bmm", "addmm", "baddbmm", "matmul", "mv", "dot", "addmv", "linear"}
        assert not operations & products


def plain(tensors):
    tensors = list(tensors)
    assert tensors
    return not any(tensor.is_inference() for tensor in tensors)


class TestLastingStateMadeInInferenceMode:
    """As in a validation hook; training goes on with it."""

    def test_an_encoder_of_ones_own(self, tokenizer, images, encoder):
        with torch.inference_mode():
            mine = FrozenCLIP(build_clip(), tokenizer)
            criterion = make_criterion(mine)
        assert plain([*mine.network.parameters(), mine._mean, mine._std])
        expected = step(make_criterion(encoder), images)
        torch.testing.assert_close(step(criterion, images), expected, rtol=0, atol=0)

    def test_loaded_vectors(self, encoder, images, tmp_path):
        criterion = make_criterion(encoder)
        criterion.fusion_model.save(tmp_path / "objective.safetensors")
        expected = step(criterion, images)
        with torch.inference_mode():
            loaded = EmbeddedFusionModel.load(tmp_path / "objective.safetensors")
            embedded = EmbeddedFusionModel(FusionObjective("a dark image"), encoder)
        assert plain([loaded.visible_direction, embedded.infrared_direction])
        assert plain([encoder.encode_text("a dark image")])
        criterion.set_objective(loaded)
        torch.testing.assert_close(step(criterion, images), expected, rtol=0, atol=0)

    def test_embedded_sources(self, encoder, images):
        criterion = make_criterion(encoder)
        expected = step(criterion, images)
        with torch.inference_mode():
            batch = [image.clone() for image in images]  # a loader's, under it too
            sources = criterion.embed_sources(*batch[1:])
        assert plain(sources)
        criterion.generator.manual_seed(1)
        fused = images[0].clone().requires_grad_()
        loss = criterion(**named([fused, *batch[1:]]), sources=sources)
        loss.backward()
        torch.testing.assert_close((loss.detach(), fused.grad), expected, rtol=0, atol=0)

    def test_casts_and_moves(self, encoder, images):
        criterion = make_criterion(encoder)
        expected = step(criterion, images)
        with torch.inference_mode():
            criterion.double().float()
        torch.testing.assert_close(step(criterion, images), expected, rtol=0, atol=0)
