"""Stands in for U2Fusion's port for exposures: `forward(over, under)`, [-1, 1] up to the loss."""

import torch
from common import Network, OwnLoss, draw_scenes, luminance


class Train:
    def train(self):
        model = Network()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        # line 66
        for epoch in range(1):
            for visible, infrared in draw_scenes():
                over, under = 2 * luminance(visible) - 1, 2 * infrared - 1
                fused_img = model(over, under).tanh()
                over, under, fused_img = ((x + 1) / 2 for x in (over, under, fused_img))
                loss = OwnLoss()(over, under, fused_img)
                # line 118
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            print(epoch, loss.item())
        return model, fused_img, [loss.item()]


NETWORK, FUSED, LOGGED = Train().train()
