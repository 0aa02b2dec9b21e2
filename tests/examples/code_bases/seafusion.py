"""Stands in for SeAFusion: (visible YCrCb, infrared, label, fused Y, number), three values."""

import torch
from common import Network, OwnLoss, draw_scenes, ycrcb


class Fusionloss(OwnLoss):
    def forward(self, image_vis, image_ir, labels, generate_img, i):
        return [super().forward(image_vis[:, :1], image_ir, generate_img)] * 3


def train_fusion(num=0):
    fusionmodel = Network(4)
    optimizer = torch.optim.Adam(fusionmodel.parameters(), lr=1e-3)
    # line 241
    criteria_fusion = Fusionloss()
    for image_vis, image_ir in draw_scenes():
        image_vis_ycrcb = ycrcb(image_vis)
        label = torch.zeros(2, 40, 40, dtype=torch.long)
        logits = fusionmodel(image_vis_ycrcb, image_ir)
        optimizer.zero_grad()
        values = criteria_fusion(image_vis_ycrcb, image_ir, label, logits, num)
        loss_fusion, loss_in, loss_grad = values
        loss_fusion.backward()
        optimizer.step()
    return fusionmodel, logits, [loss_fusion.item(), loss_in.item(), loss_grad.item()]


NETWORK, FUSED, LOGGED = train_fusion()
