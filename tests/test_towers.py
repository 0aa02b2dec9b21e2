"""Faster towers compute what they did, whatever their family."""

import copy

import open_clip
import pytest
import timm.layers
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clip_fusion_loss import FrozenCLIP
from clip_fusion_loss.towers import fold_batch_norms, speed_up
from conftest import build_clip


def randomise(network):
    """Without statistics and affine weights of their own, batch norms could not go wrong."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.5)
    return network.eval().requires_grad_(False)


def coca():
    config = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    pooling = {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
    text = {"context_length": 24, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CoCa(24, text, {"width": 24, "heads": 2, "layers": 1}, config | pooling)
    return model.visual


def vit(**options):
    width = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 2}
    return VisionTransformer(**width, mlp_ratio=4, output_dim=24, **options)


# With the number of batch norms that may be left.
FAMILIES = {
    "vit": (lambda: build_clip().visual, 0),
    "vit, scaled": (lambda: vit(ls_init_value=0.5, final_ln_after_pool=True), 0),
    "vit, mean": (lambda: vit(pool_type="avg"), 0),
    "vit, tokens": (lambda: vit(output_tokens=True), 0),
    "vit, custom": (lambda: vit(qk_norm=True), 0),
    "resnet": (lambda: ModifiedResNet([1, 2, 1, 1], 24, heads=4, image_size=64, width=16), 0),
    "timm resnet": (lambda: TimmModel("test_resnet", 24, image_size=64), 99),
    "timm fastvit": (lambda: TimmModel("fastvit_t8", 24, image_size=64), 45),
    "timm vit": (lambda: TimmModel("test_vit", 24, image_size=160, pool=""), 0),
    "coca": (coca, 0),
}


def build(family):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomise(FAMILIES[family][0]())


def take_over(tower, tokenizer):
    model = build_clip()
    model.visual = tower
    return FrozenCLIP(model, tokenizer)


def norms(network):
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


def output_and_gradient(network, images):
    images = images.clone().requires_grad_()
    output = network(images)
    output = output[0] if isinstance(output, tuple) else output
    output.square().sum().backward()
    return output.detach().double(), images.grad.double()


def errors(actual, expected):
    return [((a - b).norm() / b.norm()).item() for a, b in zip(actual, expected, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_what_it_did(family, tokenizer):
    tower = build(family).double()
    network = take_over(copy.deepcopy(tower), tokenizer).network
    assert norms(network) <= FAMILIES[family][1]
    size = tower.image_size
    images = torch.rand(2, 3, *((size, size) if isinstance(size, int) else size))
    expected = output_and_gradient(tower, images.double())
    assert max(errors(output_and_gradient(network, images.double()), expected)) < 1e-9
    assert max(errors(output_and_gradient(network.float(), images), expected)) < 1e-3


@pytest.mark.parametrize("family", ["resnet", "vit"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_no_less_exact(family, dtype, tokenizer):
    """Convolutions in 16 bits, batch norms in float32, as open_clip's precision="fp16" has it."""
    tower = build(family)
    torch.manual_seed(0)  # for some images in many, one rounding or the other is lucky
    images = torch.rand(2, 3, *tower.image_size) if family == "vit" else torch.rand(2, 3, 64, 64)
    expected = output_and_gradient(copy.deepcopy(tower).double(), images.double())
    open_clip.model.convert_weights_to_lp(tower, dtype)
    before = errors(output_and_gradient(copy.deepcopy(tower), images.to(dtype)), expected)
    network = take_over(tower, tokenizer).network
    assert norms(network) == 0
    after = errors(output_and_gradient(network, images.to(dtype)), expected)
    for ours, theirs in zip(after, before, strict=True):
        assert ours < 2 * theirs


class TestFolding:
    @pytest.mark.parametrize(
        ("convolution", "norm"),
        [
            (nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
            (nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False, eps=0.5)),
            (nn.Conv2d(4, 4, 3, groups=2, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)),
            (nn.Conv2d(4, 4, 2, 2), nn.SyncBatchNorm(4)),
            (timm.layers.Conv2dSame(4, 4, 3, 2), timm.layers.BatchNormAct2d(4)),
        ],
    )
    def test_kinds_of_pairs(self, convolution, norm):
        torch.manual_seed(0)
        network = randomise(nn.Sequential(convolution, norm).double())
        folded = copy.deepcopy(network)
        assert fold_batch_norms(folded)
        assert norms(folded) == 0
        x = torch.rand(2, 4, 8, 8, dtype=torch.float64)
        expected = output_and_gradient(network, x)
        torch.testing.assert_close(output_and_gradient(folded, x), expected)

    @pytest.mark.parametrize(
        "layers",
        [
            (nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)),
            (nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
            (nn.Conv2d(4, 4, 3), type("Mine", (nn.BatchNorm2d,), {})(4)),
            (nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        ],
    )
    def test_others_are_left_alone(self, layers):
        network = nn.Sequential(*layers).eval()
        assert not fold_batch_norms(network)
        assert [type(layer) for layer in network] == [type(layer) for layer in layers]

    def test_weights_beyond_float16_are_left_alone(self):
        network = randomise(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
        network[1].weight.fill_(1e9)
        network[0].half()
        assert not fold_batch_norms(network)
        assert norms(network) == 1

    def test_two_encoders_of_one_model_have_one_fingerprint(self, tokenizer):
        model = build_clip()
        model.visual = build("resnet")
        fresh = copy.deepcopy(model)
        first, second = FrozenCLIP(model, tokenizer), FrozenCLIP(model, tokenizer)
        assert first.fingerprint == second.fingerprint == FrozenCLIP(fresh, tokenizer).fingerprint


@pytest.mark.parametrize("family", [name for name in FAMILIES if name.startswith("vit")])
def test_one_token_where_no_other_is_used(family, tokenizer):
    tower = take_over(build(family), tokenizer).network
    shapes = []
    tower.transformer.resblocks[-1].register_forward_hook(
        lambda *call: shapes.append(call[2].shape)
    )
    tower(torch.rand(3, 3, 32, 32))
    assert shapes == [(3, 1 if family in ("vit", "vit, scaled") else 17, 32)]


def both(layer):
    """`layer`, frozen, and its faster twin."""
    layer = layer.eval().requires_grad_(False)
    fast = nn.Sequential(copy.deepcopy(layer))
    speed_up(fast)
    return layer, fast[0]


def assert_faster_and_equal(layer, x):
    layer, fast = both(layer)
    assert type(fast) is not type(layer)
    actual, expected = output_and_gradient(fast, x), output_and_gradient(layer, x)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def attention(**options):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, **{"batch_first": True, **options})
    nn.init.normal_(layer.in_proj_bias)
    return layer


class TestLayers:
    def test_self_attention(self):
        class Attend(nn.Sequential):
            def forward(self, x):
                return self[0](x, x, x, need_weights=False, attn_mask=None)[0]

        layer, fast = both(attention())
        assert type(fast) is not type(layer)
        x = torch.randn(5, 7, 16)
        actual, expected = (output_and_gradient(Attend(each), x) for each in (fast, layer))
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
    def test_other_uses_of_attention(self, options):
        layer, fast = both(attention())
        x = torch.randn(2, 7, 16)
        torch.testing.assert_close(fast(x, x, x, **options), layer(x, x, x, **options))
        y = torch.randn(2, 3, 16)
        assert torch.equal(*(m(x, y, y, need_weights=False)[0] for m in (fast, layer)))

    @pytest.mark.parametrize(
        "options",
        [
            {"kernel_size": 4, "stride": 4},
            {"kernel_size": (2, 8), "stride": (2, 8), "bias": False},
            {"kernel_size": 3},
            {"kernel_size": 4, "stride": 4, "padding": 2, "dilation": 2},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("size", [(16, 24), (18, 17)])
    def test_convolutions(self, options, size):
        assert_faster_and_equal(nn.Conv2d(3, 6, **options), torch.randn(2, 3, *size))

    def test_attention_pool(self):
        torch.manual_seed(0)
        pool = open_clip.modified_resnet.AttentionPool2d(3, 16, 4, 8)
        assert_faster_and_equal(pool, torch.randn(2, 16, 3, 3))

    def test_quick_gelu(self):
        assert_faster_and_equal(open_clip.transformer.QuickGELU(), torch.linspace(-8, 8, 101))

    @pytest.mark.parametrize(
        "layer",
        [
            timm.layers.AttentionPool2d(16, feat_size=3, head_dim=8),
            nn.Conv2d(4, 4, 3, groups=2),
            attention(batch_first=False),
            attention(add_bias_kv=True),
        ],
    )
    def test_others_are_left_alone(self, layer):
        assert type(both(layer)[1]) is type(layer)

    def test_the_state_stays(self, tokenizer):
        model = build_clip()
        state = copy.deepcopy(model.visual.state_dict())
        after = FrozenCLIP(model, tokenizer).network.state_dict()
        assert list(after) == list(state)
        assert all(torch.equal(after[name], state[name]) for name in state)
