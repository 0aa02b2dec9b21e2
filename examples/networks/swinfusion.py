"""SwinFusion: window attention within each source and across both.

Ma, Tang, Fan, Huang, Mei and Ma, "SwinFusion: Cross-domain Long-range Learning for General Image
Fusion via Swin Transformer", IEEE/CAA JAS 9(7), 2022; code: github.com/Linfeng-Tang/SwinFusion. The
blocks are those of Liu et al., "Swin Transformer", ICCV 2021 (arXiv 2103.14030).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

WIDTH, HEADS, WINDOW, DEPTH = 60, 6, 8, 4
#: How often a block is skipped in training; grows through each of the three stages.
DROP_PATH = torch.linspace(0, 0.1, DEPTH).tolist()
#: Added to the attention between tokens that only the shift has brought together.
FORBIDDEN = -100.0


class WindowAttention(nn.Module):
    """Attention inside windows of 8 x 8 tokens, of one image to itself or to the other.

    With `shifted` the windows lie half a window further right and down.
    """

    def __init__(self, shifted: bool) -> None:
        super().__init__()
        self.shift = WINDOW // 2 if shifted else 0
        self.query, self.key_value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.projection = nn.Linear(WIDTH, WIDTH)
        self.position_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, HEADS))
        nn.init.trunc_normal_(self.position_table, std=0.02)
        self.register_buffer("position_index", _relative_positions(), persistent=False)

    def forward(self, tokens: Tensor, others: Tensor) -> Tensor:
        """`tokens` ask, `others` answer: both (N, H, W, 60), H and W multiples of 8."""
        size = tokens.shape[1:3]
        asked = self.query(tokens), *self.key_value(others).chunk(2, dim=-1)
        query, key, value = map(self._windows, asked)
        bias = self.position_table[self.position_index].permute(2, 0, 1)
        if self.shift:
            bias = bias + _shift_mask(*size, self.shift, bias.device)[:, None]
            bias = bias.repeat(len(tokens), 1, 1, 1)
        answer = F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype))
        return self.projection(self._whole(answer, *size))

    def _windows(self, tokens: Tensor) -> Tensor:
        """(N, H, W, C) -> (N * windows, heads, 64, C / heads)."""
        windows = _partition(tokens.roll((-self.shift, -self.shift), dims=(1, 2)))
        return windows.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def _whole(self, windows: Tensor, height: int, width: int) -> Tensor:
        """The reverse of `_windows`."""
        shape = (-1, height // WINDOW, width // WINDOW, WINDOW, WINDOW, WIDTH)
        grid = windows.transpose(1, 2).reshape(shape)
        tokens = grid.transpose(2, 3).reshape(-1, height, width, WIDTH)
        return tokens.roll((self.shift, self.shift), dims=(1, 2))


class Block(nn.Module):
    """Attention, then an MLP, each on normalised tokens, each added to what came in."""

    def __init__(self, number: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = WindowAttention(shifted=number % 2 == 1)
        self.norm2 = nn.LayerNorm(WIDTH)
        wider, narrower = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.mlp = nn.Sequential(wider, nn.GELU(), narrower)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, tokens: Tensor) -> Tensor:
        normalised = self.norm1(tokens)
        return self.add(tokens, self.attention(normalised, normalised))

    def add(self, tokens: Tensor, answer: Tensor) -> Tensor:
        """The block from behind its attention on."""
        tokens = tokens + self.drop_path(answer)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class CrossBlock(nn.Module):
    """A block per image, whose queries ask the other image before either is updated."""

    def __init__(self, number: int, drop_path: float) -> None:
        super().__init__()
        self.a, self.b = Block(number, drop_path), Block(number, drop_path)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        from_a, from_b = self.a.norm1(a), self.b.norm1(b)
        asked_a, asked_b = self.a.attention(from_a, from_b), self.b.attention(from_b, from_a)
        return self.a.add(a, asked_a), self.b.add(b, asked_b)


class FusionLayer(nn.Module):
    """Two blocks on A, two on B, then two across."""

    def __init__(self, drop_path: list[float]) -> None:
        super().__init__()
        self.a = nn.Sequential(*map(Block, range(2), drop_path))
        self.b = nn.Sequential(*map(Block, range(2), drop_path))
        self.cross = nn.ModuleList(map(CrossBlock, range(2), drop_path))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.a(a), self.b(b)
        for block in self.cross:
            a, b = block(a, b)
        return a, b


class SwinFusion(nn.Module):
    """Extraction from each source, fusion across them, reconstruction; 965,251 parameters.

    The published code has 8,430 more in two convolutions that it never calls. A is the infrared
    image and B the visible one, as in its training loop.

    Shape:
        visible, infrared: (N, 1, H, W), usually in [0, 1]; H and W at least 5.
        returns: (N, 1, H, W), unbounded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolutions(1, WIDTH // 2, WIDTH))
        self.shared_norm = nn.LayerNorm(WIDTH)
        self.extract_a, self.extract_b = _blocks(), _blocks()
        self.fusion = nn.ModuleList([FusionLayer(DROP_PATH[:2]), FusionLayer(DROP_PATH[2:])])
        self.fusion_norm_a, self.fusion_norm_b = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.merge = nn.Sequential(*_convolutions(2 * WIDTH, WIDTH))
        self.reconstruct = _blocks()
        *layers, _ = _convolutions(WIDTH, WIDTH // 2, WIDTH // 4, 1)  # unbounded
        self.head = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, visible: Tensor, infrared: Tensor) -> Tensor:
        height, width = visible.shape[2:]
        a = self.shared_norm(self.extract_a(self._tokens(infrared)))
        b = self.shared_norm(self.extract_b(self._tokens(visible)))
        for layer in self.fusion:
            a, b = layer(a, b)
        both = torch.cat([self.fusion_norm_a(a), self.fusion_norm_b(b)], dim=-1)
        merged = self.merge(both.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        features = self.reconstruct(self.shared_norm(merged))
        return self.head(features.permute(0, 3, 1, 2))[:, :, :height, :width]

    def _tokens(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) -> normalised tokens, H and W rounded up to multiples of the window."""
        below, right = (-side % WINDOW for side in image.shape[2:])
        padded = F.pad(image, (0, right, 0, below), mode="reflect")
        return self.shared_norm(self.stem(padded).permute(0, 2, 3, 1))


def _convolutions(*channels: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.2)]
    return layers


def _blocks() -> nn.Sequential:
    return nn.Sequential(*map(Block, range(DEPTH), DROP_PATH), nn.LayerNorm(WIDTH))


def _partition(tokens: Tensor) -> Tensor:
    """(N, H, W, C) -> (N * windows, 64, C)."""
    grid = tokens.unflatten(1, (-1, WINDOW)).unflatten(3, (-1, WINDOW))
    return grid.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def _relative_positions() -> Tensor:
    """(64, 64) rows of the position table: one for each offset between two tokens of a window."""
    token, side = torch.arange(WINDOW**2), 2 * WINDOW - 1
    place = token // WINDOW * side + token % WINDOW
    return place[:, None] - place + (WINDOW - 1) * (side + 1)


def _shift_mask(height: int, width: int, shift: int, device: torch.device) -> Tensor:
    """(windows, 64, 64): `FORBIDDEN` between tokens that rolling brought from the other end."""
    below = torch.arange(height, device=device) >= height - shift
    right = torch.arange(width, device=device) >= width - shift
    side_of_seam = 2 * below[:, None] + right
    sides = _partition(side_of_seam[None, :, :, None]).squeeze(-1)
    return FORBIDDEN * (sides[:, :, None] != sides[:, None, :])
