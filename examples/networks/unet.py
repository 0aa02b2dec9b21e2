"""A small U-Net that sees what it fuses, with feature modulation by a text direction as an option.

A sentence such as "a dark image" asks for other brightness here than there, and a network can only
follow it where it sees enough around a pixel. DenseFuse sees 8 pixels around it, this one 62.
"""

from collections.abc import Iterator
from itertools import pairwise, product, repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Channels at full resolution, at half of it, and so on.
WIDTHS = (16, 32, 64, 64, 64)
#: Sides are padded to multiples of it, and tiles start at multiples of it.
STRIDE = 2 ** (len(WIDTHS) - 1)
#: Sources are kept this far from black and white, whose logits are infinite.
MARGIN = 0.01
#: Hidden features between a text direction and the scales and shifts.
MODULATION_WIDTH = 64
#: Of a large image: the side of its tiles, 768 with the 64 pixels around it that the network sees;
#: side and number of the windows that give the statistics for all tiles.
TILE, WINDOW, WINDOWS = 640, 192, 16
#: From a region to the next, scales and shifts change over this many pixels on either side: enough
#: that no line is seen, and less than people and cars are wide. Found by looking at pictures.
RAMP = 4


class FusionUNet(nn.Module):
    """A U-Net (Ronneberger et al., MICCAI 2015) that mixes the sources on the logit scale.

        fused = sigmoid(s logit(visible) + (1 - s) logit(infrared) + b)

    The network predicts the share s in (0, 1) and the offset b of each pixel. No clamp stops
    gradients, and detail need not pass the network. A fresh one has s = 1/2 and b = 0: the average.
    Group normalisation over the whole image (Wu & He, ECCV 2018) tells each pixel about the scene
    beyond the network's reach.

    Args:
        dimension: length D of the text directions that the network is told. They scale and shift
            features after each normalisation and the output (FiLM, Perez et al., AAAI 2018), but
            change nothing before training. None: for one sentence.

    Shape:
        visible, infrared: (N, 1, H, W) in [0, 1], any size from 16 pixels.
        vectors: (N, D) unit vectors, one per image, or (1, D) for all; only with `dimension`. With
            `regions` they are (R, D), one per label.
        regions: (N, H, W) integers from 0 to R - 1, the row of `vectors` for each pixel; (1, H, W)
            for all images.
        returns: (N, 1, H, W) in (0, 1).
    """

    #: With given statistics, an output pixel depends on inputs at most this many pixels away.
    REACH = 62

    def __init__(self, dimension: int | None = None) -> None:
        super().__init__()
        self.dimension = dimension
        self.down = nn.ModuleList([_Block(2, WIDTHS[0])])
        self.down.extend(_Block(*widths, stride=2) for widths in pairwise(WIDTHS))
        shallower = pairwise(reversed(WIDTHS))
        self.up = nn.ModuleList(_Block(below + skip, skip) for below, skip in shallower)
        self.last = _convolution(WIDTHS[0], 2)
        _zero(self.last)
        self._sizes = [2 * block.norm.num_channels for block in (*self.down, *self.up)] + [2 * 2]
        if dimension is not None:
            hidden = nn.Linear(dimension, MODULATION_WIDTH)
            changes = nn.Linear(MODULATION_WIDTH, sum(self._sizes))
            self.modulation = nn.Sequential(hidden, nn.ReLU(), changes)
            _zero(changes)

    def forward(
        self,
        visible: Tensor,
        infrared: Tensor,
        vectors: Tensor | None = None,
        *,
        regions: Tensor | None = None,
    ) -> Tensor:
        changes = self._changes(visible, vectors, regions)
        height, width = visible.shape[2:]
        features = torch.cat([visible, infrared], dim=1) * 4 - 2
        features = F.pad(features, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        skips = []
        for block in self.down:
            features = block(features, next(changes))
            skips.append(features)
        skips.pop()  # the deepest features themselves
        for block in self.up:
            larger = F.interpolate(features, scale_factor=2, mode="bilinear")
            features = block(torch.cat([larger, skips.pop()], dim=1), next(changes))
        maps = _modulated(self.last(features), next(changes))[..., :height, :width]
        share, offset = maps.to(visible.dtype).chunk(2, dim=1)  # under autocast it would be lower
        mixed = torch.lerp(infrared.logit(MARGIN), visible.logit(MARGIN), share.sigmoid())
        return torch.sigmoid(mixed + offset)

    @torch.no_grad()
    def fuse(
        self,
        visible: Tensor,
        infrared: Tensor,
        vectors: Tensor | None = None,
        *,
        regions: Tensor | None = None,
        tile: int = TILE,
    ) -> Tensor:
        """Fuse images of any size without gradients; arguments and result as in a call.

        An image of more than 768 x 768 pixels, one a call, is fused in tiles of side `tile`, a
        multiple of 16, which overlap as far as the network sees and share the statistics of 16
        windows spread over the image. This changes road scenes by at most 1.3 grey levels.

        Beyond the libraries it takes 0.55 GB of memory for 1,280 x 1,024 pixels and 0.85 GB for
        4,000 x 3,000 (float32 on a CPU), of which the three images are 0.15 GB.
        """
        reach = self.REACH + (0 if regions is None else RAMP)
        around = -(-reach // STRIDE) * STRIDE
        if visible[0].numel() <= (tile + 2 * around) ** 2:
            return self(visible, infrared, vectors, regions=regions)
        if len(visible) > 1:
            raise ValueError(f"`visible` must be one large image at a time, got {len(visible)}")
        norms = [block.norm for block in (*self.down, *self.up)]
        fused = torch.empty_like(visible)
        tops, lefts = (range(0, side, tile) for side in visible.shape[2:])
        try:
            for norm in norms:
                norm.shares = True
            parts = None if regions is None else _windows(regions)
            self(_windows(visible), _windows(infrared), vectors, regions=parts)
            for top, left in product(tops, lefts):
                above, before = min(top, around), min(left, around)
                rows = slice(top - above, top + tile + around)
                columns = slice(left - before, left + tile + around)
                parts = None if regions is None else regions[..., rows, columns]
                sources = visible[..., rows, columns], infrared[..., rows, columns]
                part = self(*sources, vectors, regions=parts)
                part = part[..., above : above + tile, before : before + tile]
                fused[..., top : top + tile, left : left + tile] = part
            return fused
        finally:
            for norm in norms:
                norm.shares, norm.statistics = False, None

    def _changes(
        self, visible: Tensor, vectors: Tensor | None, regions: Tensor | None
    ) -> Iterator[Tensor | None]:
        """Scales and shifts of layer after layer, (N or 1, 2 C, 1, 1), or maps of them."""
        self._check(visible, vectors, regions)
        if vectors is None:
            return repeat(None)
        # Scaled to a root mean square of 1; the small entries of a unit vector train slowly.
        changes = self.modulation(vectors * self.dimension**0.5)[:, :, None, None]
        changes = changes.split(self._sizes, dim=1)
        if regions is None:
            return iter(changes)
        labels = torch.arange(len(vectors), device=regions.device).view(-1, 1, 1)
        shares = [_smoothed((regions[:, None] == labels).to(visible.dtype))]
        for _ in WIDTHS[1:]:
            shares.append(F.avg_pool2d(shares[-1], 2))
        sizes = (*shares, *shares[-2::-1], shares[0])
        # A matrix product for each pixel, when its layer asks for it: one layer's maps a time.
        return (F.conv2d(s, c.transpose(0, 1)) for s, c in zip(sizes, changes, strict=True))

    def _check(self, visible: Tensor, vectors: Tensor | None, regions: Tensor | None) -> None:
        count, _, *size = visible.shape
        got = None if vectors is None else tuple(vectors.shape)
        shapes: tuple[object, ...] = (None,)
        if self.dimension is not None:
            rows = [count, 1] if regions is None or vectors is None else [len(vectors)]
            shapes = tuple((row, self.dimension) for row in rows)
        if got not in shapes:
            raise ValueError(
                f"`vectors` must have shape {' or '.join(map(str, shapes))}, got {got}; pass text "
                "directions, per image, for all or per label, to a FusionUNet that is built with "
                "their length"
            )
        if regions is None:
            return
        if vectors is None:
            raise ValueError("`regions` must be given to a FusionUNet that is built for `vectors`")
        wanted = [(number, *size) for number in (count, 1)]
        if regions.is_floating_point() or tuple(regions.shape) not in wanted:
            raise ValueError(
                f"`regions` must be integers of shape {wanted[0]} or {wanted[1]}, a label for each "
                f"pixel, got {regions.dtype} of shape {tuple(regions.shape)}"
            )
        # It waits for the device, but a label without a vector would pass without a trace.
        low, high = (int(label) for label in regions.aminmax())
        if low < 0 or high >= len(vectors):
            raise ValueError(
                f"`regions` must be labels from 0 to {len(vectors) - 1}, the rows of `vectors`, "
                f"got {low} to {high}; pass a vector for each label"
            )


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = _convolution(inputs, outputs, stride)
        self.norm = _SharingNorm(4, outputs)

    def forward(self, features: Tensor, change: Tensor | None) -> Tensor:
        features = _modulated(self.norm(self.convolution(features)), change)
        return F.relu(features, inplace=True)


class _SharingNorm(nn.GroupNorm):
    """Group normalisation; where it `shares`, all images have the statistics of the first batch."""

    shares, statistics = False, None

    def forward(self, features: Tensor) -> Tensor:
        if not self.shares:
            return super().forward(features)
        groups = features.unflatten(1, (self.num_groups, -1))
        if self.statistics is None:
            self.statistics = torch.var_mean(groups, (0, 2, 3, 4), keepdim=True, correction=0)
        variance, mean = self.statistics
        # One scale and one shift for each channel, in place of a copy for each operation.
        scale = (variance + self.eps).rsqrt()
        weight = self.weight.view(1, self.num_groups, -1, 1, 1) * scale
        bias = self.bias.view(1, self.num_groups, -1, 1, 1) - mean * weight
        return torch.addcmul(bias.flatten(1, 2), features, weight.flatten(1, 2))


def _windows(images: Tensor) -> Tensor:
    """(1, ..., H, W) -> (up to 16, ..., S, S) windows on an even grid, which may overlap."""
    height, width = images.shape[-2:]
    side = min(WINDOW, height, width)
    across = min(max(round((WINDOWS * width / height) ** 0.5), 1), WINDOWS)
    down = WINDOWS // across
    tops = torch.linspace(0, height - side, down).long().tolist()
    lefts = torch.linspace(0, width - side, across).long().tolist()
    return torch.cat([images[..., y : y + side, x : x + side] for y in tops for x in lefts])


def _smoothed(shares: Tensor) -> Tensor:
    """Pad (N, R, H, W) to a multiple of 16, and turn edges into ramps of twice `RAMP` pixels."""
    height, width = shares.shape[2:]
    shares = F.pad(shares, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
    for _ in range(2):  # twice, for a ramp without corners
        for side in ((RAMP + 1, 1), (1, RAMP + 1)):
            padding = (side[0] // 2, side[1] // 2)
            shares = F.avg_pool2d(shares, side, 1, padding, count_include_pad=False)
    return shares


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, padding_mode="replicate")


def _modulated(features: Tensor, change: Tensor | None) -> Tensor:
    if change is None:
        return features
    scale, shift = change.chunk(2, dim=1)
    return torch.addcmul(shift, features, 1 + scale)


def _zero(layer: nn.Module) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
