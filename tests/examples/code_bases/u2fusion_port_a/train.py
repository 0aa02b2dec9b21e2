"""Stands in for U2Fusion's port for exposures: `forward(over, under)`, [-1, 1] up to the loss."""

import torch
from common import Network, luminance, own_loss, scenes

if __name__ == "__main__":
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for visible, infrared in scenes():
        over, under = 2 * luminance(visible) - 1, 2 * infrared - 1
        fused = model(over, under).tanh()
        over, under, fused = ((x + 1) / 2 for x in (over, under, fused))
        loss = own_loss(over, under, fused)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    NETWORK = model
    TRUTH = {"fused": fused, "visible": over, "infrared": under}
    LOGGED = [loss.item()]
