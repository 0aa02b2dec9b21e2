"""Stands in for the PyTorch port of DenseFuse: no `forward`, lists, an average, a ReLU, 0 to 255.

It trains on single images; `pairs` for the second stage are the reader's own.
"""
# fmt: off
# ruff: noqa: W191

from common import draw_scenes, luminance
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
	for img in images:
		optimizer.zero_grad()
		outputs = densefuse_model.decoder(densefuse_model.encoder(img))
		loss = nn.functional.mse_loss(outputs[0], img)
		loss.backward()
		optimizer.step()
		# save the losses now and then
	# line 186
	# save model
	saved = {name: weight.clone() for name, weight in densefuse_model.state_dict().items()}
	return densefuse_model, saved, outputs[0] / 255, [loss.item()]


pairs = [(255 * luminance(visible), 255 * infrared) for visible, infrared in draw_scenes()]
NETWORK, SAVED, FUSED, LOGGED = train([infrared for _, infrared in pairs])
