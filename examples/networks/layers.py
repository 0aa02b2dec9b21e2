"""A convolution that several networks share."""

from torch import nn


def reflect_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """3x3, stride 1, the border reflected, so that the size is kept."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode="reflect")
