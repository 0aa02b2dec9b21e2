"""Towers with batch norms folded away compute what they did, whatever their family."""

import copy
import pickle

import open_clip
import pytest
import timm.layers
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.utils import freeze_batch_norm_2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clip_fusion_loss import FrozenCLIP
from clip_fusion_loss.folding import fold_batch_norm
from conftest import build_clip


def randomise(network):
    """Without statistics and affine weights of their own, batch norms could not go wrong."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.5)
    return network.eval().requires_grad_(False)


def resnet():
    return ModifiedResNet([1, 2, 1, 1], output_dim=24, heads=4, image_size=64, width=16)


def coca():
    config = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    pooling = {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
    text = {"context_length": 24, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CoCa(24, text, {"width": 24, "heads": 2, "layers": 1}, config | pooling)
    return model.visual


FAMILIES = {
    "vit": lambda: build_clip().visual,
    "resnet": resnet,
    "timm resnet": lambda: TimmModel("test_resnet", 24, image_size=64),
    "timm efficientnet": lambda: TimmModel("test_efficientnet", 24, image_size=64),
    "timm fastvit": lambda: TimmModel("fastvit_t8", 24, image_size=64),
    "timm vit": lambda: TimmModel("test_vit", 24, image_size=160, pool=""),
    "timm convnext": lambda: TimmModel("test_convnext", 24, image_size=64),
    "coca": coca,
}


def build(family):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomise(FAMILIES[family]())


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
    assert norms(network) <= norms(tower) / 2
    size = tower.image_size
    images = torch.rand(2, 3, *((size, size) if isinstance(size, int) else size))
    expected = output_and_gradient(tower, images.double())
    assert max(errors(output_and_gradient(network, images.double()), expected)) < 1e-9
    single = output_and_gradient(network.float(), images)
    assert max(errors(single, expected)) < 1e-3


@pytest.mark.parametrize("family", ["resnet", "vit", "timm resnet"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_no_less_exact(family, dtype, tokenizer):
    """Convolutions in 16 bits, batch norms in float32, as open_clip's precision="fp16" has it."""
    tower = build(family)
    size = 64 if family != "vit" else 32
    images = torch.rand(2, 3, size, size)
    expected = output_and_gradient(copy.deepcopy(tower).double(), images.double())
    open_clip.model.convert_weights_to_lp(tower, dtype)
    before = errors(output_and_gradient(copy.deepcopy(tower), images.to(dtype)), expected)
    network = take_over(tower, tokenizer).network
    assert norms(network) == 0
    after = errors(output_and_gradient(network, images.to(dtype)), expected)
    for ours, theirs in zip(after, before, strict=True):
        assert ours < 2 * theirs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moved_to_16_bits_later(dtype, tokenizer):
    encoder = take_over(build("resnet"), tokenizer)
    images = torch.rand(2, 3, 64, 64)
    expected = encoder.encode_image(images)
    actual = encoder.to(dtype).encode_image(images)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.02)


class Small(nn.Module):
    """Modules and what is done with them."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.run(self, x)


def conv(**options):
    return nn.Conv2d(4, 4, 3, **options)


def plain(self, x):
    return self.norm(self.conv(x)).relu()


def crosswise(self, x):
    return self.norm(self.second(self.other(self.first(x)).relu()))


FOLDED = {
    "bias": Small(plain, conv=conv(), norm=nn.BatchNorm2d(4)),
    "no bias": Small(plain, conv=conv(bias=False), norm=nn.BatchNorm2d(4)),
    "no affine": Small(plain, conv=conv(bias=False), norm=nn.BatchNorm2d(4, affine=False)),
    "eps": Small(plain, conv=conv(), norm=nn.BatchNorm2d(4, eps=0.5)),
    "groups": Small(plain, conv=conv(groups=2), norm=nn.BatchNorm2d(4)),
    "padding": Small(plain, conv=conv(padding=1, padding_mode="reflect"), norm=nn.BatchNorm2d(4)),
    "patches": Small(plain, conv=nn.Conv2d(4, 4, 2, 2), norm=nn.BatchNorm2d(4)),
    "synchronised": Small(plain, conv=conv(), norm=nn.SyncBatchNorm(4)),
    "activation": Small(plain, conv=conv(), norm=timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU)),
    "same": Small(plain, conv=timm.layers.Conv2dSame(4, 4, 3, 2), norm=nn.BatchNorm2d(4)),
    "registered crosswise": Small(
        crosswise, first=conv(), norm=nn.BatchNorm2d(4), second=conv(), other=nn.BatchNorm2d(4)
    ),
}

NORM = {"conv": conv(), "norm": nn.BatchNorm2d(4)}

LEFT = {
    "output used twice": Small(lambda s, x: s.norm(y := s.conv(x)) + y, **NORM),
    "output used in a list": Small(lambda s, x: torch.cat([s.norm(y := s.conv(x)), y]), **NORM),
    "output returned": Small(lambda s, x: (y := s.conv(x), s.norm(y))[::-1], **NORM),
    "changed in between": Small(lambda s, x: s.norm(s.conv(x).relu_()), **NORM),
    "before": Small(lambda s, x: s.conv(s.norm(x)), **NORM),
    "convolution used twice": Small(lambda s, x: s.norm(s.conv(x)) + s.conv(x).mean(), **NORM),
    "norm used twice": Small(lambda s, x: s.norm(s.norm(s.conv(x))), **NORM),
    "weight used elsewhere": Small(lambda s, x: s.norm(s.conv(x)) * s.conv.weight.sum(), **NORM),
    "statistics used elsewhere": Small(
        lambda s, x: s.norm(s.conv(x)) + s.norm.running_mean.sum(), **NORM
    ),
    "no statistics": Small(plain, conv=conv(), norm=nn.BatchNorm2d(4, track_running_stats=False)),
    "computed weight": Small(
        plain, conv=nn.utils.parametrizations.weight_norm(conv()), norm=nn.BatchNorm2d(4)
    ),
    "frozen": Small(plain, conv=conv(), norm=freeze_batch_norm_2d(nn.BatchNorm2d(4))),
    "own class": Small(plain, conv=conv(), norm=type("Mine", (nn.BatchNorm2d,), {})(4)),
    "decides by values": Small(lambda s, x: s.norm(s.conv(x)) if x.sum().item() > 0 else x, **NORM),
}


def folded_and_original(network):
    torch.manual_seed(0)
    network = randomise(copy.deepcopy(network).double())
    folded = copy.deepcopy(network)
    x = torch.rand(2, 4, 8, 8, dtype=torch.float64)
    changed = fold_batch_norm(folded, x.to("meta"))
    expected, actual = output_and_gradient(network, x), output_and_gradient(folded, x)
    torch.testing.assert_close(actual, expected)
    return changed, norms(folded)


@pytest.mark.parametrize("case", FOLDED)
def test_folded(case):
    assert folded_and_original(FOLDED[case]) == (True, 0)


@pytest.mark.parametrize("case", LEFT)
def test_left_alone(case):
    assert folded_and_original(LEFT[case]) == (False, norms(LEFT[case]))


def test_weights_beyond_float16_are_left_alone():
    network = randomise(copy.deepcopy(FOLDED["bias"]))
    network.norm.weight.fill_(1e9)
    network.conv.half()
    assert not fold_batch_norm(network, torch.empty(1, 4, 8, 8, dtype=torch.half, device="meta"))


def test_two_encoders_of_one_model_have_one_fingerprint(tokenizer):
    model = build_clip()
    model.visual = build("resnet")
    fresh = copy.deepcopy(model)
    first, second = FrozenCLIP(model, tokenizer), FrozenCLIP(model, tokenizer)
    assert norms(first.network) == 0
    assert first.fingerprint == second.fingerprint == FrozenCLIP(fresh, tokenizer).fingerprint


def test_text_tower_is_left_alone(tokenizer):
    model = build_clip()
    expected = FrozenCLIP(copy.deepcopy(model), tokenizer).encode_text("an image")
    before = {k: v.clone() for k, v in model.state_dict().items() if "visual." not in k}
    model.visual = build("resnet")
    assert torch.equal(FrozenCLIP(model, tokenizer).encode_text("an image"), expected)
    after = {k: v for k, v in model.state_dict().items() if "visual." not in k}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", ["resnet", "timm resnet"])
def test_copies(family, tokenizer):
    encoder = take_over(build(family), tokenizer)
    images = torch.rand(2, 3, 64, 64)
    expected = encoder.encode_image(images)
    for clone in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(clone.encode_image(images), expected)
    replica = encoder.network_on(torch.device("meta"))
    assert replica(images.to("meta")).shape == expected.shape
    compiled = torch.compile(encoder.network, backend="eager", fullgraph=True)
    normalised = (images - encoder._mean) / encoder._std
    torch.testing.assert_close(compiled(normalised), encoder.network(normalised))
