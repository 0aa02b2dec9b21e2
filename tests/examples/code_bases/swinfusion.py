"""Stands in for SwinFusion: (A infrared, B visible Y, E fused), four values, [0, 1]."""

from functools import partial

import torch
from common import Network, OwnLoss, draw_scenes, luminance
from torch import nn

fusion_loss_vif = partial(OwnLoss, 4)


class ModelPlain:
    def __init__(self):
        self.device = torch.device("cpu")
        self.netG = nn.DataParallel(Network()).to(self.device)

        self.G_optimizer = torch.optim.Adam(self.netG.parameters(), lr=2e-5)
        self.define_loss()

    def define_loss(self):
        G_lossfn_type = "loe"  # noqa: N806
        if G_lossfn_type == "loe":
            # line 119
            self.G_lossfn = fusion_loss_vif().to(self.device)

    def optimize_parameters(self):
        self.G_optimizer.zero_grad()
        self.E = self.netG(self.A, self.B)
        total_loss, loss_text, loss_int, loss_ssim = self.G_lossfn(self.A, self.B, self.E)
        total_loss.backward()
        self.G_optimizer.step()
        self.log = [loss.item() for loss in (total_loss, loss_text, loss_int, loss_ssim)]


model = ModelPlain()
for visible, model.A in draw_scenes():
    model.B = luminance(visible)
    model.optimize_parameters()
NETWORK, FUSED, LOGGED = model.netG, model.E, model.log
