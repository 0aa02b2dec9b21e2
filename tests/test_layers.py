"""The faster layers compute what PyTorch's own do."""

import copy
import pickle

import open_clip
import pytest
import timm.layers
import torch
from torch import nn

from clip_fusion_loss import FrozenCLIP
from clip_fusion_loss.layers import speed_up
from conftest import build_clip


def both(layer):
    """`layer`, frozen, and its faster twin."""
    layer = layer.eval().requires_grad_(False)
    fast = nn.Sequential(copy.deepcopy(layer))
    speed_up(fast)
    return layer, fast[0]


def output_and_gradient(layer, x, *arguments, **options):
    x = x.clone().requires_grad_()
    output = layer(x, *arguments, **options)
    output.square().sum().backward()
    return output.detach(), x.grad


def attention(**options):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, **{"batch_first": True, **options})
    nn.init.normal_(layer.in_proj_bias)
    return layer


@pytest.mark.parametrize("batch", [1, 5])
def test_self_attention(batch):
    layer, fast = both(attention())
    assert type(fast) is not type(layer)
    x = torch.randn(batch, 7, 16)

    def attend(layer, x):
        return layer(x, x, x, need_weights=False, attn_mask=None)[0]

    expected = output_and_gradient(lambda x: attend(layer, x), x)
    actual = output_and_gradient(lambda x: attend(fast, x), x)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"need_weights": True},
        {"need_weights": False, "attn_mask": torch.ones(7, 7, dtype=torch.bool).triu(1)},
        {"need_weights": False, "key_padding_mask": torch.arange(14).view(2, 7) % 7 > 4},
    ],
    ids=["weights", "mask", "padding"],
)
def test_other_uses_of_attention_are_as_before(options):
    layer, fast = both(attention())
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(fast(x, x, x, **options), layer(x, x, x, **options))


def test_cross_attention_is_as_before():
    layer, fast = both(attention())
    x, y = torch.randn(2, 7, 16), torch.randn(2, 3, 16)
    actual, expected = (m(x, y, y, need_weights=False)[0] for m in (fast, layer))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    "options", [{"batch_first": False}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str
)
def test_unusual_attention_is_left_alone(options):
    layer, fast = both(attention(**options))
    assert type(fast) is type(layer)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [4, (2, 8)])
def test_patch_projection(kernel, bias):
    layer, fast = both(nn.Conv2d(3, 6, kernel, stride=kernel, bias=bias))
    assert type(fast) is not type(layer)
    x = torch.randn(2, 3, 16, 24)
    expected, actual = output_and_gradient(layer, x), output_and_gradient(fast, x)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_images_that_windows_do_not_tile_are_as_before():
    layer, fast = both(nn.Conv2d(3, 6, 4, stride=4))
    x = torch.randn(2, 3, 18, 17)
    assert torch.equal(fast(x), layer(x))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 4, "stride": 2},
        {"kernel_size": 4, "stride": 4, "padding": 2},
        {"kernel_size": 4, "stride": 4, "groups": 3},
        {"kernel_size": 4, "stride": 4, "dilation": 2},
        {"kernel_size": 1},
    ],
    ids=str,
)
def test_other_convolutions(options):
    layer, fast = both(nn.Conv2d(3, 6, **options))
    x = torch.randn(2, 3, 16, 24)
    expected, actual = output_and_gradient(layer, x), output_and_gradient(fast, x)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    last = actual[0].is_contiguous(memory_format=torch.channels_last)
    assert last == ("groups" not in options)


def test_attention_pool():
    torch.manual_seed(0)
    layer, fast = both(open_clip.modified_resnet.AttentionPool2d(3, 16, 4, 8).double())
    assert type(fast) is not type(layer)
    x = torch.randn(2, 16, 3, 3, dtype=torch.float64)
    expected, actual = output_and_gradient(layer, x), output_and_gradient(fast, x)
    torch.testing.assert_close(actual, expected)


def test_other_attention_pools_are_left_alone():
    layer, fast = both(timm.layers.AttentionPool2d(16, feat_size=3, head_dim=8))
    assert type(fast) is type(layer)


def test_quick_gelu():
    layer, fast = both(open_clip.transformer.QuickGELU())
    assert type(fast) is not type(layer)
    x = torch.linspace(-8, 8, 101)
    expected, actual = output_and_gradient(layer, x), output_and_gradient(fast, x)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_tower(dtype, tokenizer):
    plain = build_clip().visual.eval().requires_grad_(False)
    images = torch.rand(3, 3, 32, 32)
    expected = output_and_gradient(plain.double(), images.double())
    encoder = FrozenCLIP(build_clip(), tokenizer)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        actual = output_and_gradient(encoder.network, images)
    for a, b in zip(actual, expected, strict=True):
        error = (a.double() - b).norm() / b.norm()
        assert error < (1e-5 if dtype == torch.float32 else 0.03)


def test_state_and_pickle(tokenizer):
    model = build_clip()
    state = copy.deepcopy(model.visual.state_dict())
    tower = FrozenCLIP(model, tokenizer).network
    for each in (tower, pickle.loads(pickle.dumps(tower))):
        assert list(each.state_dict()) == list(state)
        assert all(torch.equal(each.state_dict()[name], state[name]) for name in state)
