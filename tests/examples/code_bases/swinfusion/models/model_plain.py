"""Stands in for SwinFusion: (A infrared, B visible Y, E fused), four values, [0, 1]."""

import torch
from common import Network, luminance, own_loss, scenes
from torch import nn


class fusion_loss_vif(nn.Module):  # noqa: N801
    def forward(self, A, B, E):  # noqa: N803
        loss = own_loss(A, B, E)
        return loss, loss, loss, loss


class ModelPlain:
    def __init__(self):
        self.device = torch.device("cpu")
        self.netG = nn.DataParallel(Network()).to(self.device)
        self.log_dict = {}

    def init_train(self):
        self.netG.train()
        self.define_loss()
        self.G_optimizer = torch.optim.Adam(self.netG.parameters(), lr=2e-5)

    def define_loss(self):
        G_lossfn_type = "loe"  # noqa: N806
        if G_lossfn_type == "loe":
            self.G_lossfn = fusion_loss_vif().to(self.device)
        else:
            raise NotImplementedError(G_lossfn_type)

    def optimize_parameters(self):
        self.G_optimizer.zero_grad()
        self.E = self.netG(self.A, self.B)
        total_loss, loss_text, loss_int, loss_ssim = self.G_lossfn(self.A, self.B, self.E)
        total_loss.backward()
        self.G_optimizer.step()
        self.log_dict["Text_loss"] = loss_text.item()
        self.log_dict["Int_loss"] = loss_int.item()
        self.log_dict["SSIM_loss"] = loss_ssim.item()
        self.log_dict["G_loss"] = total_loss.item()


model = ModelPlain()
model.init_train()
for visible, model.A in scenes():
    model.B = luminance(visible)
    model.optimize_parameters()
NETWORK = model.netG
TRUTH = {"fused": model.E, "visible": model.B, "infrared": model.A}
LOGGED = [model.log_dict[name] for name in ("G_loss", "Text_loss", "Int_loss", "SSIM_loss")]
