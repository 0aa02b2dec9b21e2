"""torch.compile of the image tower and of the step around the loss."""

import pytest
import torch
from open_clip.model import CLIP
from torch import nn

from clip_fusion_loss import FrozenCLIP
from conftest import MODEL_CONFIG, draw_images, make_criterion

# One layer: compiling takes most of the time.
CONFIG = {**MODEL_CONFIG, "vision_cfg": {**MODEL_CONFIG["vision_cfg"], "layers": 1}}


# Dynamo looks at the .grad of its inputs, and silences the warning unless warnings are errors.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_step_with_a_compiled_tower(tokenizer, monkeypatch):
    """The loss is left out of the graphs of the step; the tower has its own."""

    def compile_for_tests(encoder, **options):  # without the minutes of the C++ compiler
        encoder.network.compile(backend="aot_eager", **options)

    monkeypatch.setattr(FrozenCLIP, "compile", compile_for_tests)
    torch.manual_seed(0)
    model = CLIP(**CONFIG)
    network = nn.Conv2d(2, 1, 1)
    _, visible, infrared = draw_images()
    plain, own = (
        make_criterion(FrozenCLIP(model, tokenizer), compile=compile) for compile in (False, True)
    )

    def step(criterion):
        fused = network(torch.cat([visible, infrared], 1)).sigmoid()
        return criterion(fused=fused, visible=visible, infrared=infrared)

    def gradients(loss):
        return torch.autograd.grad(loss, network.parameters())

    expected = [step(plain) for _ in range(3)]
    compiled_step = torch.compile(step, backend="eager")
    actual = [compiled_step(own)]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    actual += [compiled_step(own) for _ in range(2)]
    # Other numbers of kept patches, the same graphs.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradients(a), gradients(b), rtol=1e-3, atol=1e-5)
