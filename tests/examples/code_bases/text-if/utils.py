"""Stands in for Text-IF: (visible, infrared, fused, task), RGB, five values, [0, 1]."""
# ruff: noqa: N806

import torch
from common import Network, own_loss, scenes
from torch import nn


class fusion_prompt_loss(nn.Module):  # noqa: N801
    def forward(self, visible, infrared, fused, task):
        return (own_loss(visible, infrared, fused),) * 5


def train_one_epoch(model, optimizer, data_loader, device):
    loss_function_prompt = fusion_prompt_loss()
    for I_A_gt, I_B_gt, task in data_loader:
        I_fused = model(I_A_gt, I_B_gt).sigmoid()
        values = loss_function_prompt(I_A_gt, I_B_gt, I_fused, task)
        loss, loss_ssim, loss_max, loss_color, loss_text = values
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    logged = [value.item() for value in (loss, loss_ssim, loss_max, loss_color, loss_text)]
    return logged, {"fused": I_fused, "visible": I_A_gt, "infrared": I_B_gt}


NETWORK = Network(6, out=3)
optimizer = torch.optim.Adam(NETWORK.parameters(), lr=1e-4)
loader = [
    (visible, infrared.expand(-1, 3, -1, -1), ["low_light"]) for visible, infrared in scenes()
]
LOGGED, TRUTH = train_one_epoch(NETWORK, optimizer, loader, torch.device("cpu"))
