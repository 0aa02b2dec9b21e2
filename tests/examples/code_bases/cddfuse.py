"""Stands in for CDDFuse: (visible, infrared, fused), three values, [0, 1].

The criterion is made before the device is known.
"""
# ruff: noqa: N816

from functools import partial

import torch
from common import Network, OwnLoss, draw_scenes, luminance
from torch import nn

Fusionloss = partial(OwnLoss, 3)

criteria_fusion = Fusionloss()
# line 55
device = "cuda" if torch.cuda.is_available() else "cpu"
network = nn.DataParallel(Network()).to(device)
optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

for visible, data_IR in draw_scenes():
    data_VIS, data_IR = luminance(visible).to(device), data_IR.to(device)
    network.zero_grad()
    data_Fuse = network(data_VIS, data_IR)
    fusionloss, _, _ = criteria_fusion(data_VIS, data_IR, data_Fuse)
    loss = fusionloss
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), max_norm=0.01, norm_type=2)
    optimizer.step()

NETWORK, FUSED, LOGGED = network, data_Fuse, [loss.item()]
