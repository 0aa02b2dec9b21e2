"""Stands in for the PyTorch port of PIAFusion: the loss stands inline in the loop, [0, 1]."""

import torch
import torch.nn.functional as F
from common import Network, draw_scenes, luminance

if __name__ == "__main__":
    arch, progress_bar = "fusion_model", []
    if arch == "fusion_model":
        model = Network()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        # line 96
        for epoch in range(1):
            for vis_image, inf_image in draw_scenes():
                vis_y_image = luminance(vis_image)
                optimizer.zero_grad()
                fused_image = model(vis_y_image, inf_image)
                loss = F.l1_loss(fused_image, torch.max(vis_y_image, inf_image))
                # line 139
                progress_bar.append((epoch, loss.item()))
                loss.backward()
                optimizer.step()

    NETWORK, FUSED, LOGGED = model, fused_image, [loss.item()]
