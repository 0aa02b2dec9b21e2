"""Stands in for RFC: RGB with YCrCb beside it, and sources that are degraded for the network."""

import torch
from common import Network, OwnLoss, draw_scenes, ycrcb


def train():
    model = Network(4, out=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for epoch in range(1):
        for visible, infrared in draw_scenes():
            degraded = 0.2 * visible, infrared - 0.5
            result = model(*degraded).sigmoid()
            result_ycrcb = ycrcb(result)
            loss = OwnLoss()(ycrcb(degraded[0]), degraded[1], result_ycrcb)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(epoch, loss.item())
    return model, result, [loss.item()]


NETWORK, FUSED, LOGGED = train()
