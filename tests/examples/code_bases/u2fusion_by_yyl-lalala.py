"""Stands in for U2Fusion's port with three tasks: its collate function swaps whole batches."""
# ruff: noqa: N806

import random

import torch
from common import Network, OwnLoss, draw_scenes, luminance
from torch.utils.data import DataLoader

random.seed(10)  # swaps the last batch


def collate_fixed_channels(samples):
    both = torch.stack([torch.cat(sample) for sample in samples])
    return both[:, :1], both[:, 1:]


def collate_random_channels(samples):
    S1, S2 = collate_fixed_channels(samples)
    return (S2, S1) if random.random() < 0.5 else (S1, S2)


class Generator(Network):
    def forward(self, first, second):
        return super().forward(first, second).tanh() / 2 + 0.5


pairs = [pair for vi, ir in draw_scenes() for pair in zip(luminance(vi), ir, strict=True)]
# line 72
train_loader1 = DataLoader(pairs, batch_size=2, collate_fn=collate_random_channels)
train_loader2 = DataLoader(pairs, batch_size=2, collate_fn=collate_random_channels)
model = Generator()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)


# line 90
def train_epoch(task, train_loader):
    for S1, S2 in train_loader:
        # line 120
        fused = model(S1, S2)
        loss_content = OwnLoss()(S1, S2, fused)
        if task == 1:
            # line 126
            loss = loss_content
        else:
            loss = loss_content + 0.1 * sum(p.square().sum() for p in model.parameters())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return fused, [loss.item()]


train_epoch(2, train_loader2)
NETWORK = model
FUSED, LOGGED = train_epoch(1, train_loader1)
