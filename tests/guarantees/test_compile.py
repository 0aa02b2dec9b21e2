"""torch.compile of the image tower and of the step around the loss."""

import pytest
import torch
from open_clip.model import CLIP
from torch import nn

from clip_fusion_loss import FrozenCLIP
from conftest import MODEL_CONFIG, draw_images, make_criterion

# One layer: compiling takes most of the time.
CONFIG = {**MODEL_CONFIG, "vision_cfg": {**MODEL_CONFIG["vision_cfg"], "layers": 1}}


def make_step(criterion):
    torch.manual_seed(0)
    network = nn.Conv2d(2, 1, 1)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    _, visible, infrared = draw_images()

    def step():
        fused = network(torch.cat([visible, infrared], 1)).sigmoid()
        loss = criterion(fused=fused, visible=visible, infrared=infrared)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, network


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler about this machine
def test_compiled_step_with_a_compiled_tower(tokenizer, monkeypatch):
    """The loss is left out of the graphs of the step; the tower has its own."""

    def compile_for_tests(encoder, **options):  # without the minutes of the C++ compiler
        encoder.network.compile(backend="aot_eager", **options)

    monkeypatch.setattr(FrozenCLIP, "compile", compile_for_tests)
    model = CLIP(**CONFIG)
    plain, first = make_step(make_criterion(FrozenCLIP(model, tokenizer)))
    step, second = make_step(make_criterion(FrozenCLIP(model, tokenizer), compile=True))
    compiled = torch.compile(step, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(), plain(), rtol=1e-4, atol=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for _ in range(2):
        torch.testing.assert_close(compiled(), plain(), rtol=1e-4, atol=1e-5)
    # Other numbers of kept patches, the same graphs.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
