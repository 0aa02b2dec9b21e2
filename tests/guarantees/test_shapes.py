"""Whatever the shape and layout of the images: finite, of the right shape, and the same."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_fusion_loss import PatchGeometry
from conftest import draw_images, make_criterion, named

side = st.integers(16, 600)
channels = st.tuples(*[st.sampled_from([1, 3])] * 3)

# The fixture is only read. Sizes are what counts here, not minimal examples or time.
search = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@search
@given(
    batch=st.integers(1, 3),
    size=st.tuples(side, side),
    channels=channels,
    options=st.fixed_dictionaries(
        {
            "num_patches": st.integers(1, 5),
            "patch_chunk": st.sampled_from([None, 1, 2, 64]),
            "reduction": st.sampled_from(["mean", "sum", "none"]),
            "min_patch_entropy": st.sampled_from([None, 4.0, 6.0]),
            "patch_geometry": st.builds(
                PatchGeometry,
                scale=st.tuples(st.floats(0.05, 0.5), st.floats(0.5, 1.0)),
                rotation=st.floats(0, 180),
                vertical_shear=st.floats(0, 45),
            ),
            "patch_filter": st.sampled_from(["both", "each"]),
            "link": st.sampled_from(["linear", "exponential"]),
        }
    ),
)
def test_any_size(encoder, batch, size, channels, options):
    images = [image.requires_grad_() for image in draw_images(batch, channels, size)]
    terms = make_criterion(encoder, **options).terms(**named(images))
    terms.total.sum().backward()
    for name, term in terms._asdict().items():
        assert term.shape == ((batch,) if options["reduction"] == "none" else ()), name
        assert term.dtype == torch.float32, name
        assert term.isfinite().all(), name
    fused, visible, infrared = images
    assert fused.grad.isfinite().all()
    assert fused.grad.abs().sum() > 0
    assert visible.grad is None
    assert infrared.grad is None


LAYOUTS = {
    "channels last": lambda image: image.to(memory_format=torch.channels_last),
    "strided": lambda image: torch.stack([image, 0 * image], -1)[..., 0],
    "transposed": lambda image: image.mT.contiguous().mT,
    "offset": lambda image: torch.cat([image[:1], image])[1:],
    "expanded": lambda image: image[:1].expand(2, -1, -1, -1),
}


@search
@given(
    size=st.tuples(st.integers(16, 90), st.integers(16, 90)),
    channels=channels,
    layouts=st.tuples(*[st.sampled_from(list(LAYOUTS))] * 3),
)
def test_memory_layout_is_irrelevant(encoder, size, channels, layouts):
    def value_and_gradient(images):
        fused = images[0].detach().requires_grad_()
        loss = make_criterion(encoder)(**named([fused, *images[1:]]))
        return loss.detach(), *torch.autograd.grad(loss, fused)

    images = draw_images(2, channels, size)
    laid_out = [LAYOUTS[name](image) for name, image in zip(layouts, images, strict=True)]
    expected = value_and_gradient([image.clone().contiguous() for image in laid_out])
    torch.testing.assert_close(value_and_gradient(laid_out), expected, rtol=1e-3, atol=1e-6)
