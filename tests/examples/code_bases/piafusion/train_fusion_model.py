"""Stands in for the PyTorch port of PIAFusion: the loss stands inline in the loop, [0, 1]."""

import torch
import torch.nn.functional as F
from common import Network, luminance, scenes

if __name__ == "__main__":
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for visible, inf_image in scenes():
        vis_y = luminance(visible)
        optimizer.zero_grad()
        fused = model(vis_y, inf_image)
        loss_illum = F.l1_loss(fused, vis_y) + F.l1_loss(fused, inf_image)
        loss_aux = F.l1_loss(fused, torch.max(vis_y, inf_image))
        loss = 3 * loss_illum + 7 * loss_aux
        loss.backward()
        optimizer.step()

    NETWORK = model
    TRUTH = {"fused": fused, "visible": vis_y, "infrared": inf_image}
    LOGGED = [loss.item()]
