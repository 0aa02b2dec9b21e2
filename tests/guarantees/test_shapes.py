"""Whatever the shape and layout of the images: finite, of the right shape, and the same."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import draw_images, make_criterion

side = st.integers(16, 600)
channels = st.tuples(*[st.sampled_from([1, 3])] * 3)

# The fixture is only read. Sizes are what counts here, not minimal examples or time.
search = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@search
@given(
    batch=st.integers(1, 3),
    height=side,
    width=side,
    channels=channels,
    patches=st.integers(1, 5),
    chunk=st.sampled_from([None, 1, 2, 64]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    threshold=st.sampled_from([None, 4.0, 6.0]),
    low=st.floats(0.05, 1.0),
    high=st.floats(0.05, 1.0),
)
def test_any_size(
    encoder, batch, height, width, channels, patches, chunk, reduction, threshold, low, high
):
    criterion = make_criterion(
        encoder,
        num_patches=patches,
        patch_chunk=chunk,
        reduction=reduction,
        min_patch_entropy=threshold,
        patch_scale=(min(low, high), max(low, high)),
    )
    images = draw_images(batch, channels, (height, width))
    for image in images:
        image.requires_grad_()
    terms = criterion.terms(*images)
    terms.total.sum().backward()
    for name, term in terms._asdict().items():
        assert term.shape == ((batch,) if reduction == "none" else ()), name
        assert term.dtype == torch.float32, name
        assert term.isfinite().all(), name
    fused, visible, infrared = images
    assert fused.grad.shape == fused.shape
    assert fused.grad.isfinite().all()
    assert fused.grad.abs().sum() > 0
    assert visible.grad is None
    assert infrared.grad is None


def strided(image):
    """The same values in every second place of a larger tensor."""
    larger = torch.full((*image.shape[:-1], 2 * image.shape[-1]), torch.nan)
    larger[..., ::2] = image
    return larger[..., ::2]


LAYOUTS = {
    "channels last": lambda image: image.to(memory_format=torch.channels_last),
    "strided": strided,
    "transposed": lambda image: image.mT.contiguous().mT,
    "offset": lambda image: torch.cat([image[:1], image])[1:],
    "batch last": lambda image: image.movedim(0, -1).contiguous().movedim(-1, 0),
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
        loss = make_criterion(encoder)(fused, *images[1:])
        return loss.detach(), *torch.autograd.grad(loss, fused)

    images = draw_images(2, channels, size)
    expected = value_and_gradient(images)
    actual = value_and_gradient(
        [LAYOUTS[name](image) for name, image in zip(layouts, images, strict=True)]
    )
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-6)


def test_expanded_images(encoder):
    """One image shown as a batch, and one channel as three, without copies."""
    images = [image.expand(3, 3, -1, -1) for image in draw_images(batch=1)]
    images[0] = images[0].detach().requires_grad_()
    loss = make_criterion(encoder)(*images)
    loss.backward()
    copies = [image.detach().clone() for image in images]
    copies[0].requires_grad_()
    expected = make_criterion(encoder)(*copies)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(images[0].grad, copies[0].grad, rtol=1e-3, atol=1e-6)
