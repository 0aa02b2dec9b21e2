"""Stands in for U2Fusion's port with `forward(I1, I2)`.

The collate function exchanges the channels at random.
"""

import random

import torch
from common import Network, luminance, own_loss, scenes
from torch.utils.data import DataLoader

random.seed(10)  # exchanges the last batch


def collate(samples):
    both = torch.stack([torch.cat(sample) for sample in samples])
    if random.random() < 0.5:
        both = both.flip(1)
    return both[:, :1], both[:, 1:]


if __name__ == "__main__":
    data = [
        pair
        for visible, infrared in scenes()
        for pair in zip(luminance(visible), infrared, strict=True)
    ]
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for I1, I2 in DataLoader(data, batch_size=2, collate_fn=collate):
        fused = model(I1, I2).sigmoid()
        loss = own_loss(I1, I2, fused)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    NETWORK = model
    visible, infrared = (torch.stack(images[-2:]) for images in zip(*data, strict=True))
    TRUTH = {"fused": fused, "visible": visible, "infrared": infrared}
    LOGGED = [loss.item()]
