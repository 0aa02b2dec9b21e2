"""The networks of the examples, against their specifications."""

import pytest
import torch

from networks import NETWORKS, PORTS
from networks.densefuse import DenseFuse
from networks.ldfusion import ContentEncoder, Decoder, LDFusion, StyleEncoder
from networks.swinfusion import (
    WINDOW,
    Block,
    CrossBlock,
    SwinFusion,
    WindowAttention,
)
from networks.u2fusion import DenseEncoder, U2Fusion

PUBLISHED = [name for name in NETWORKS if name != "unet"]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(autouse=True)
def fixed_start():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (DenseFuse, 74_193),
        (U2Fusion, 659_217),
        (DenseEncoder, 262_416),
        (SwinFusion, 973_681 - 8_430),  # the published code holds a pair that it never calls
        (LDFusion, 5_776_977),
        (ContentEncoder, 763_392),
        (StyleEncoder, 107_976),
        (Decoder, 4_034_241),
    ],
)
def test_has_the_parameters_of_the_publication(network, parameters):
    assert count(network()) == parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_takes_any_size(name):
    network = NETWORKS[name]().eval()
    for size in ((16, 20), (37, 26)):
        visible, infrared = torch.rand(2, 2, 1, *size)
        fused = network(visible, infrared)
        assert fused.shape == visible.shape
        assert fused.isfinite().all()


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "ldfusion"])
def test_every_parameter_learns_at_once(name):
    network = NETWORKS[name]()
    network(*torch.rand(2, 2, 1, 24, 24)).square().sum().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize(("build", "last"), [(SwinFusion, "head"), (DenseFuse, "decoder")])
def test_the_output_is_linear(build, last):
    network = build()
    torch.nn.init.constant_(getattr(network, last)[-1].bias, -5.0)
    assert (network(*torch.rand(2, 1, 1, 8, 8)) < 0).all()


@pytest.mark.parametrize("name", PUBLISHED)
def test_tells_its_sources_apart_unless_it_adds_them(name):
    network = NETWORKS[name]().eval()
    visible, infrared = torch.rand(2, 1, 1, 32, 32)
    same = torch.equal(network(visible, infrared), network(infrared, visible))
    assert same == (name == "densefuse")


def plain_attention(attention, tokens, others):
    """Window attention of one image, token by token; what `WindowAttention` has to equal."""
    height, width, channels = tokens.shape
    heads = attention.position_table.shape[1]
    key_value = attention.key_value(others)
    query, key, value = attention.query(tokens), *key_value.chunk(2, dim=-1)
    answer = torch.zeros_like(tokens)

    def place(row, column):
        """The window of a token and, where windows wrap around, the side of the seam."""
        row, column = row - attention.shift, column - attention.shift
        wrapped = row < 0, column < 0
        row, column = row % height, column % width
        return (row // WINDOW, column // WINDOW, wrapped), row % WINDOW, column % WINDOW

    positions = [(row, column) for row in range(height) for column in range(width)]
    for row, column in positions:
        window, y, x = place(row, column)
        peers = [p for p in positions if place(*p)[0] == window]
        for head in range(heads):
            part = slice(head * channels // heads, (head + 1) * channels // heads)
            scores = []
            for peer in peers:
                _, peer_y, peer_x = place(*peer)
                offset = (y - peer_y + WINDOW - 1) * (2 * WINDOW - 1) + x - peer_x + WINDOW - 1
                inner = query[row, column, part] @ key[(*peer, part)]
                scale = (channels / heads) ** -0.5
                scores.append(scale * inner + attention.position_table[offset, head])
            weights = torch.stack(scores).softmax(0)
            values = torch.stack([value[(*peer, part)] for peer in peers])
            answer[row, column, part] = weights @ values
    return attention.projection(answer)


@pytest.mark.parametrize("shifted", [False, True])
def test_window_attention_equals_the_plain_formula(shifted):
    attention = WindowAttention(shifted).requires_grad_(False)
    torch.nn.init.normal_(attention.position_table)
    tokens, others = torch.randn(2, 2, 8, 16, 60)
    together = attention(tokens, others)
    torch.testing.assert_close(together[1], plain_attention(attention, tokens[1], others[1]))


def test_cross_blocks_ask_the_other_image_before_it_changes():
    block = CrossBlock(0, drop_path=0.0)
    a, b = torch.randn(2, 1, 8, 8, 60)
    new_a, new_b = block(a, b)
    from_a, from_b = block.a.norm1(a), block.b.norm1(b)
    torch.testing.assert_close(new_a, block.a.add(a, block.a.attention(from_a, from_b)))
    torch.testing.assert_close(new_b, block.b.add(b, block.b.attention(from_b, from_a)))


def test_swinfusion_skips_blocks_in_training_only():
    network = SwinFusion()

    def rates(module):
        return [part.drop_path.p for part in module.modules() if isinstance(part, Block)]

    expected = pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])
    for stage in (network.extract_a, network.extract_b, network.reconstruct):
        assert rates(stage) == expected
    assert rates(network.fusion[0].a) + rates(network.fusion[1].a) == expected
    assert rates(network.fusion[0].cross[1]) == pytest.approx([0.1 / 3] * 2)
    images = torch.rand(2, 2, 1, 16, 16)
    assert torch.equal(network.eval()(*images), network(*images))


def test_swinfusion_shares_its_first_convolutions_and_norm():
    network = SwinFusion().eval()
    calls = []
    network.stem.register_forward_hook(lambda *_: calls.append("stem"))
    network.shared_norm.register_forward_hook(lambda *_: calls.append("norm"))
    network(*torch.rand(2, 1, 1, 16, 16))
    assert calls == [*["stem", "norm", "norm"] * 2, "norm"]


def test_ldfusion_starts_as_published():
    weights = [m.weight for m in LDFusion().modules() if "Conv" in type(m).__name__]
    assert len(weights) == 34
    for weight in weights:
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_ldfusion_outputs():
    visible, infrared = torch.rand(2, 2, 1, 32, 32)
    network = LDFusion()
    clamped = network(visible, infrared)
    assert (clamped == 0).any()
    network.clamp = False
    smooth = network(visible, infrared)
    assert ((smooth > 0) & (smooth < 1)).all()
    torch.testing.assert_close((2 * smooth - 1).clamp(0, 1), clamped)


def test_ldfusion_takes_its_style_from_the_style_alone():
    decoder = Decoder()
    content, style = torch.rand(1, 256, 4, 4), torch.rand(1, 16)
    assert not torch.equal(decoder(content, style), decoder(content, style + 1))
    # With weight 0 and bias 0 the blocks pass their input on.
    torch.nn.init.zeros_(decoder.style[-1].weight)
    torch.nn.init.zeros_(decoder.style[-1].bias)
    torch.testing.assert_close(decoder(content, style), decoder.grow(content))


def test_densefuse_averages_and_cuts_as_the_port_does():
    network = DenseFuse()
    port = PORTS["densefuse-port"]()
    port.load_state_dict(network.state_dict())
    visible, infrared = torch.rand(2, 1, 1, 8, 8)
    features = (network.encoder(255 * visible) + network.encoder(255 * infrared)) / 2
    expected = network.decoder(features).relu() / 255
    torch.testing.assert_close(port(visible, infrared), expected)
