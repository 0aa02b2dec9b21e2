"""Stands in for the PyTorch port of DenseFuse: no `forward`, lists, an average, a ReLU, 0 to 255.

It trains on single images; `pairs` for the second stage are the reader's own.
"""

from common import luminance, scenes
from torch import nn
from torch.optim import Adam


class DenseFuse_net(nn.Module):  # noqa: N801
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")
        self.conv2 = nn.Conv2d(4, 1, 3, padding=1, padding_mode="reflect")
        nn.init.constant_(self.conv2.bias, 100.0)  # trained weights pass their ReLU

    def encoder(self, image):
        return [self.conv1(image).relu()]

    def fusion(self, en1, en2):
        return [(en1[0] + en2[0]) / 2]

    def decoder(self, features):
        return [self.conv2(features[0]).relu()]


def train(images):
    densefuse_model = DenseFuse_net()
    optimizer = Adam(densefuse_model.parameters(), 1e-4)
    mse_loss = nn.MSELoss()
    for img in images:
        optimizer.zero_grad()
        outputs = densefuse_model.decoder(densefuse_model.encoder(img))
        total_loss = sum(mse_loss(output, img) for output in outputs) / len(outputs)
        total_loss.backward()
        optimizer.step()
    return densefuse_model


pairs = [(255 * luminance(visible), 255 * infrared) for visible, infrared in scenes()]
densefuse_model = train([infrared for _, infrared in pairs])

NETWORK = densefuse_model
TRUTH = dict(zip(("visible", "infrared"), (image / 255 for image in pairs[-1]), strict=True))
TRUTH["fused"] = globals()["outputs"][0] / 255
LOGGED = [globals()["loss"].item()]
