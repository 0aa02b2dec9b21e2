"""Stands in for CDDFuse: (visible, infrared, fused), three values, [0, 1].

The criterion stands at line 32, the device at line 55. Its own takes the first channel of the
visible image.
"""
# ruff: noqa: N816

import torch
from common import Network, luminance, own_loss, scenes
from torch import nn


class Fusionloss(nn.Module):
    def forward(self, image_vis, image_ir, generate_img):
        loss = own_loss(image_vis[:, :1], image_ir, generate_img)
        return loss, loss, loss


"""
------------------------------------------------------------------------------
The configuration.

As in the original,

The criterion comes first,
then the numbers,
then the device.
------------------------------------------------------------------------------
"""


criteria_fusion = Fusionloss()
model_str = "CDDFuse"

# . . . . . . .

num_epochs = 1
epoch_gap = 0

# . . . . . . .

lr = 1e-4
weight_decay = 0
batch_size = 2

# . . . . . . .

clip_grad_norm_value = 0.01
optim_step = 20
optim_gamma = 0.5

# . . . . . . .

# Model
device = "cuda" if torch.cuda.is_available() else "cpu"
network = nn.DataParallel(Network()).to(device)
optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay)

for visible, data_IR in scenes():
    data_VIS, data_IR = luminance(visible).to(device), data_IR.to(device)
    network.train()
    network.zero_grad()
    data_Fuse = network(data_VIS, data_IR)
    fusionloss, _, _ = criteria_fusion(data_VIS, data_IR, data_Fuse)
    loss = fusionloss
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), max_norm=clip_grad_norm_value, norm_type=2)
    optimizer.step()

NETWORK = network
TRUTH = {"fused": data_Fuse, "visible": data_VIS, "infrared": data_IR}
LOGGED = [loss.item()]
