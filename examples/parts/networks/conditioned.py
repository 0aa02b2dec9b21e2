"""Networks conditioned on a sentence, which can be chosen at inference."""

import torch
from torch import Tensor, nn


class Conditioned(nn.Module):
    """A convolutional network whose channels are scaled and shifted depending on a vector.

    Feature-wise linear modulation (Perez et al., "FiLM: Visual Reasoning with a General
    Conditioning Layer", AAAI 2018) after each convolution of `network`. Before training it
    computes the same as `network` for any vector, as the layer of scales and shifts is zero.

    Args:
        network: called as ``network(visible, infrared)``; its convolutions are replaced in place.
        dimension: length D of the vectors.
        width: width of the hidden layer between vector and scales.

    Shape:
        visible, infrared: (N, 1, H, W), as `network` takes them.
        vector: (N, D) unit vectors, one per image, or (1, D) for all.
        returns: as `network`.

    Raises:
        ValueError: `network` has no convolution, or `vector` another shape.
    """

    def __init__(self, network: nn.Module, dimension: int, *, width: int = 128) -> None:
        super().__init__()
        convolutions = [
            (module, name, layer)
            for module in network.modules()
            for name, layer in module.named_children()
            if isinstance(layer, nn.Conv2d)
        ]
        if not convolutions:
            raise ValueError(f"`network` must hold convolutions, got {type(network).__name__}")
        self._layers = [_Modulated(layer) for _, _, layer in convolutions]
        for (module, name, _), layer in zip(convolutions, self._layers, strict=True):
            setattr(module, name, layer)
        self.network = network
        self.dimension = dimension
        self._sizes = [2 * layer.convolution.out_channels for layer in self._layers]
        self.modulation = nn.Sequential(
            nn.Linear(dimension, width), nn.ReLU(), nn.Linear(width, sum(self._sizes))
        )
        nn.init.zeros_(self.modulation[-1].weight)
        nn.init.zeros_(self.modulation[-1].bias)
        if hasattr(network, "REACH"):
            self.REACH = network.REACH

    def forward(self, visible: Tensor, infrared: Tensor, vector: Tensor) -> Tensor:
        if vector.ndim != 2 or vector.shape[1] != self.dimension or vector.shape[0] not in (
            1, len(visible),
        ):  # fmt: skip
            raise ValueError(
                f"`vector` must have shape ({len(visible)}, {self.dimension}) or "
                f"(1, {self.dimension}), got {tuple(vector.shape)}; pass one direction per image"
            )
        # Scaled to a root mean square of 1; the small entries of a unit vector train slowly.
        changes = self.modulation(vector * self.dimension**0.5)
        for layer, change in zip(self._layers, changes.split(self._sizes, dim=1), strict=True):
            layer.change = change
        try:
            return self.network(visible, infrared)
        finally:
            for layer in self._layers:
                layer.change = None


class _Modulated(nn.Module):
    """A convolution whose output is scaled and shifted by `change`, (N or 1, 2 C)."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.change: Tensor | None = None

    def forward(self, image: Tensor) -> Tensor:
        scale, shift = self.change[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, self.convolution(image), 1 + scale)


def told(network: Conditioned, vector: Tensor) -> nn.Module:
    """`network` with a fixed (D,) vector, called as ``(visible, infrared)``.

    The vector is normalised; it may be an interpolation of two directions.
    """
    return _Told(network, torch.nn.functional.normalize(vector, dim=0)[None])


class _Told(nn.Module):
    def __init__(self, network: Conditioned, vector: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("vector", vector)
        if hasattr(network, "REACH"):
            self.REACH = network.REACH

    def forward(self, visible: Tensor, infrared: Tensor) -> Tensor:
        return self.network(visible, infrared, self.vector)
