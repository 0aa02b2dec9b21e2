"""Stands in for Text-IF: (visible, infrared, fused, task), RGB, five values, [0, 1]."""
# ruff: noqa: N806

from functools import partial

import torch
from common import Network, OwnLoss, draw_scenes

fusion_prompt_loss = partial(OwnLoss, 5)


# line 140
def train_one_epoch(model, optimizer, data_loader, device):
    # line 143
    loss_function_prompt = fusion_prompt_loss()
    for I_A_gt, I_B_gt, task in data_loader:
        I_fused = model(I_A_gt, I_B_gt).sigmoid()
        values = loss_function_prompt(I_A_gt, I_B_gt, I_fused, task)
        loss, loss_ssim, loss_max, loss_color, loss_text = values
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return I_fused, [value.item() for value in (loss, loss_ssim, loss_max, loss_color, loss_text)]


@torch.no_grad()
def evaluate(model, data_loader, device):
    # line 211
    loss_function_prompt = fusion_prompt_loss()
    for I_A_gt, I_B_gt, task in data_loader:
        loss_function_prompt(I_A_gt, I_B_gt, model(I_A_gt, I_B_gt).sigmoid(), task)


NETWORK, device = Network(6, out=3), torch.device("cpu")
optimizer = torch.optim.Adam(NETWORK.parameters(), lr=1e-4)
loader = [(visible, infrared.expand(-1, 3, -1, -1), ["low"]) for visible, infrared in draw_scenes()]
FUSED, LOGGED = train_one_epoch(NETWORK, optimizer, loader, device)
evaluate(NETWORK, loader, device)
