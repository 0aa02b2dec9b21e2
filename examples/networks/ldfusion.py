"""LDFusion: the network that the language-driven loss was published with.

Wang, Miao, Zhou, Zhang and Qiao, "Infrared and Visible Image Fusion with Language-Driven Loss in
CLIP Embedding Space", ACM MM 2025 (arXiv 2402.16267); code: github.com/wyhlaowang/LDFusion. Content
and style follow Huang et al., "Multimodal Unsupervised Image-to-Image Translation", ECCV 2018.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: 3x3, stride 1, the border reflected, so that the size is kept.
reflect_conv = partial(nn.Conv2d, kernel_size=3, padding=1, padding_mode="reflect")

CONTENT, STYLE = 128, 8
WIDTH = 2 * CONTENT  # of both modalities side by side


class ContentEncoder(nn.Sequential):
    """(N, 1, H, W) -> (N, 128, H / 8, W / 8), rounded down; 763,392 parameters."""

    def __init__(self) -> None:
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(1, 16, 7), nn.InstanceNorm2d(16), nn.ReLU()]
        for channels in (16, 32, 64):
            layers += [_halve(channels, 2 * channels), nn.InstanceNorm2d(2 * channels), nn.ReLU()]
        layers += [ResidualBlock(CONTENT), ResidualBlock(CONTENT)]
        super().__init__(*layers)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = reflect_conv(channels, channels)
        self.conv2 = reflect_conv(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        inner = F.instance_norm(self.conv1(features)).relu()
        return features + F.instance_norm(self.conv2(inner))


class StyleEncoder(nn.Sequential):
    """(N, 1, H, W) -> (N, 8): what the image is like as a whole; 107,976 parameters."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(1, 16, 7), nn.ReLU()]
        for in_channels, out_channels in ((16, 32), (32, 64), (64, 64)):
            layers += [_halve(in_channels, out_channels), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, STYLE, 1), nn.Flatten()]
        super().__init__(*layers)


class StyledBlock(ResidualBlock):
    def forward(self, features: Tensor, bias_weight1: Tensor, bias_weight2: Tensor) -> Tensor:
        inner = _restyle(self.conv1(features), bias_weight1).relu()
        return features + _restyle(self.conv2(inner), bias_weight2)


class SampleNorm(nn.Module):
    """Normalise each sample over channels and pixels, then scale and shift each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        std, mean = torch.std_mean(features, dim=(1, 2, 3), keepdim=True)
        return (features - mean) / (std + 1e-5) * self.weight + self.bias


class Decoder(nn.Module):
    """Content (N, 256, h, w), style (N, 16) -> (N, 1, 8 h + 21, 8 w + 21); 4,034,241 parameters."""

    def __init__(self) -> None:
        super().__init__()
        hidden = [nn.Linear(2 * STYLE, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
        self.style = nn.Sequential(*hidden, nn.Linear(256, 8 * WIDTH))
        self.blocks = nn.ModuleList([StyledBlock(WIDTH), StyledBlock(WIDTH)])
        layers: list[nn.Module] = []
        for channels in (WIDTH, WIDTH // 2, WIDTH // 4):
            grow = nn.ConvTranspose2d(channels, channels // 2, 5, stride=2)
            layers += [grow, SampleNorm(channels // 2), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(WIDTH // 8, 1, 7)]
        self.grow = nn.Sequential(*layers)

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        # Two blocks with two normalisations each, every one with a bias and a weight per channel.
        first, second = self.style(style).chunk(2, dim=1)
        content = self.blocks[0](content, *first.chunk(2, dim=1))
        return self.grow(self.blocks[1](content, *second.chunk(2, dim=1)))


class LDFusion(nn.Module):
    """Content and style of each modality, decoded together; 5,776,977 parameters.

    Args:
        clamp: True cuts tanh to [0, 1], as published. Where it cuts no gradient passes; the last
            bias therefore starts at 1/2. False maps tanh to (0, 1) instead.

    Shape:
        visible, infrared: (N, 1, H, W), usually in [0, 1]; H and W at least 16.
        returns: (N, 1, H, W) in [0, 1].
    """

    def __init__(self, clamp: bool = True) -> None:
        super().__init__()
        self.clamp = clamp
        self.visible_content, self.visible_style = ContentEncoder(), StyleEncoder()
        self.infrared_content, self.infrared_style = ContentEncoder(), StyleEncoder()
        self.decoder = Decoder()
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, std=0.02)
        if clamp:
            nn.init.constant_(self.decoder.grow[-1].bias, 0.5)

    def forward(self, visible: Tensor, infrared: Tensor) -> Tensor:
        content = torch.cat([self.visible_content(visible), self.infrared_content(infrared)], 1)
        style = torch.cat([self.visible_style(visible), self.infrared_style(infrared)], 1)
        height, width = visible.shape[2:]
        fused = self.decoder(content, style)[:, :, :height, :width].tanh()
        return fused.clamp(0, 1) if self.clamp else fused / 2 + 0.5


def _halve(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1)


def _restyle(features: Tensor, bias_weight: Tensor) -> Tensor:
    """Adaptive instance normalisation; `bias_weight` (N, 2 C) holds the biases first."""
    bias, weight = bias_weight[:, :, None, None].chunk(2, dim=1)
    return F.instance_norm(features) * weight + bias
