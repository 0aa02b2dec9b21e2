"""torch.compile of the image tower and of the step around the loss."""

import pytest
import torch
from open_clip.model import CLIP
from torch import nn

from clip_fusion_loss import FrozenCLIP, LanguageDrivenFusionLoss
from conftest import MODEL_CONFIG, draw_images, make_criterion

# One layer: compiling takes most of the time.
CONFIG = {**MODEL_CONFIG, "vision_cfg": {**MODEL_CONFIG["vision_cfg"], "layers": 1}}


# Dynamo looks at the .grad of its inputs, and silences the warning unless warnings are errors.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_tower_inside_a_compiled_step(tokenizer):
    torch.manual_seed(0)
    model = CLIP(**CONFIG)
    network = nn.Conv2d(2, 1, 1)
    _, visible, infrared = draw_images()
    criteria = [
        LanguageDrivenFusionLoss(
            encoder=FrozenCLIP(model, tokenizer),
            num_patches=6,
            generator=torch.Generator().manual_seed(1),
            compile=compile,
        )
        for compile in (False, True)
    ]

    def step(criterion):
        fused = network(torch.cat([visible, infrared], 1)).sigmoid()
        return criterion(fused, visible, infrared)

    def gradients(loss):
        return torch.autograd.grad(loss, network.parameters())

    plain = [step(criteria[0]) for _ in range(3)]
    compiled_step = torch.compile(step, backend="eager")
    compiled = [compiled_step(criteria[1])]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled += [compiled_step(criteria[1]) for _ in range(2)]
    # Other numbers of kept patches, the same graphs.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    for actual, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        for a, b in zip(gradients(actual), gradients(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler about this machine
def test_compiled_training_step(encoder):
    """The whole step by the default compiler: the loss is left out of the graphs and works."""
    torch.manual_seed(0)
    networks = [nn.Conv2d(2, 1, 1) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    _, visible, infrared = draw_images()

    def make_step(network):
        criterion = make_criterion(encoder)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)

        def step():
            fused = network(torch.cat([visible, infrared], 1)).sigmoid()
            loss = criterion(fused, visible, infrared)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return step

    plain, compiled = make_step(networks[0]), torch.compile(make_step(networks[1]))
    for _ in range(3):
        torch.testing.assert_close(compiled(), plain(), rtol=1e-4, atol=1e-5)
    for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
