"""torch.compile of the image tower and of the step around the loss."""

import pytest
import torch
from open_clip.model import CLIP
from torch import nn

from clip_fusion_loss import FrozenCLIP
from conftest import MODEL_CONFIG, TORCH_VERSION, draw_images, make_criterion

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

    bank = plain.embed(["a dark image", "a bright image", "a haze"])

    def step(criterion, index):
        fused = network(torch.cat([visible, infrared], 1)).sigmoid()
        # To compile `bank[tensor]` is an error in torch 2.4.
        objectives = bank[index] if TORCH_VERSION >= (2, 5) else None
        return criterion(fused=fused, visible=visible, infrared=infrared, objectives=objectives)

    def gradients(loss):
        return torch.autograd.grad(loss, network.parameters())

    indices = [torch.tensor(rows) for rows in ([0, 1], [2, 2], [1, 0])]
    expected = [step(plain, index) for index in indices]
    compiled_step = torch.compile(step, backend="eager")
    actual = [compiled_step(own, indices[0])]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    actual += [compiled_step(own, index) for index in indices[1:]]
    # Other numbers of kept patches and other texts, the same graphs.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradients(a), gradients(b), rtol=1e-3, atol=1e-5)
