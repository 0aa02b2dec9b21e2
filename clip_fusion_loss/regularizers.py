"""Regularizers: loss terms without language, modules called ``(fused, visible, infrared) -> (B,)``.

Images are (B, 1 | 3, H, W) float32 in [0, 1]; each of the three may be grey or RGB.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checks, functional
from .frozen import FrozenModule, computes_in_float16, default_torch_state

# Indices in torchvision's vgg19().features, of five blocks of convolutions and one pooling each.
VGG_LAYERS = {
    f"relu{block}_{number}": start + 2 * number - 1
    for block, start, count in ((1, 0, 2), (2, 5, 2), (3, 10, 4), (4, 19, 4), (5, 28, 4))
    for number in range(1, count + 1)
}

PAPER_LAYERS = {"relu2_1": 1.0, "relu3_1": 1.0, "relu4_2": 1.0}
AUTOFUSE_LAYERS = {"relu3_1": 0.5, "relu4_2": 0.5}


class VGGMaxFeatureLoss(FrozenModule):
    """The paper's perceptual term: VGG-19 features after relu2_1, relu3_1 and relu4_2.

        sum_l w_l MSE(phi_l(fused), max(phi_l(visible), phi_l(infrared)))

    As in the paper's code, VGG gets images in [0, 1] without ImageNet normalisation, and grey ones
    are repeated to 3 channels. Images need at least 8 pixels per side. The network is frozen and
    stays out of checkpoints and optimizers.

    `weights` is a file with the `state_dict` of torchvision's `vgg19`, or of its ``features``; code
    in it is not run. None loads torchvision's IMAGENET1K_V1 from torch's hub cache, or downloads
    it. A missing file or a failed download is a FileNotFoundError, another file a ValueError.
    `layers` maps names, "relu1_1" to "relu5_4", to weights w_l.
    """

    frozen = ("network",)
    network: nn.Sequential

    @default_torch_state()
    def __init__(
        self, weights: str | Path | None = None, *, layers: Mapping[str, float] = PAPER_LAYERS
    ) -> None:
        super().__init__()
        if not isinstance(layers, Mapping) or not layers or not {*layers} <= VGG_LAYERS.keys():
            known = "names, 'relu1_1' to 'relu5_4',"
            raise ValueError(f"`layers` must map {known} to weights, got {layers!r}")
        self.layers = {name: checks.check_number("layers", layers[name]) for name in layers}
        self.network = _vgg19_features(weights)[: max(VGG_LAYERS[name] for name in layers) + 1]

    def forward(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
        """The (B,) losses, at least 0, differentiable in `fused` only."""
        with torch.no_grad():
            pair = [functional.match_channels(images, 3) for images in (visible, infrared)]
            features = [layer.chunk(2) for layer in self._features(torch.cat(pair))]
            of_visible, of_infrared = zip(*features, strict=True)
        of_fused = self._features(functional.match_channels(fused, 3))
        weights = list(self.layers.values())
        return functional.max_feature_loss(of_fused, of_visible, of_infrared, weights)

    def _features(self, images: Tensor) -> list[Tensor]:
        if computes_in_float16(self.network, images.device):
            images = functional.soften_outliers(images)
        images = images.to(next(self.network.parameters()).dtype)
        features, wanted = {}, {VGG_LAYERS[name]: name for name in self.layers}
        for index, layer in enumerate(self.network.children()):
            images = layer(images)
            if index in wanted:
                features[wanted[index]] = images.float()
        return [features[name] for name in self.layers]


class IntensityGradientLoss(nn.Module):
    """L1 distance to the maximum intensity and to the stronger gradient; needs no download.

        mean |f - max(v, r)| + gradient_weight * mean |grad f - g|

    g is the source gradient of larger magnitude, with its sign; see
    `functional.intensity_gradient_loss`. Sources are converted to grey or RGB like `fused`.
    `gradient_weight` is at least 0; 2 was found in trials with the bundled CLIP.
    """

    def __init__(self, gradient_weight: float = 2.0) -> None:
        super().__init__()
        self.gradient_weight = checks.check_number("gradient_weight", gradient_weight)

    def forward(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
        """The (B,) losses, at least 0."""
        visible, infrared = _like_fused(fused, visible, infrared)
        return functional.intensity_gradient_loss(fused, visible, infrared, self.gradient_weight)


class StructureLoss(nn.Module):
    """Edges and layout of the sources, but not their brightness and contrast; needs no download.

        edges + layout_weight * layout + gradient_weight * gradient

    Use it for texts about brightness or contrast: `IntensityGradientLoss` and `VGGMaxFeatureLoss`
    keep both near those of the sources, so such a text has little effect. It works with any CLIP.

    *Edges*: the gradient of the fused image must correlate with the stronger source gradient in
    each window, whatever its amplitude, and be flat where both sources are flat, which prevents
    noise and relief. *Layout*: on a coarse scale, bright and dark regions must be where
    ``max(visible, infrared)`` has them. *Gradient*: the L1 distance to the stronger source
    gradient, which keeps detail as strong as it is there, at any brightness. Sources are converted
    to grey or RGB like `fused`.

    Equations and arguments are those of `functional.structure_loss`: `window` is at least 1, both
    weights at least 0. At a higher `flat_energy`, at least 1e-6, weak texture counts as flat too,
    and amplifying it is penalised. `LanguageDrivenFusionLoss.tiny()` has other values, found by a
    search with the bundled CLIP (docs/results.md).
    """

    def __init__(
        self, *, window: int = 9, flat_energy: float = 0.05, layout_weight: float = 1.0,
        gradient_weight: float = 0.0, above_noise: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.window = checks.check_number("window", window, minimum=1, whole=True)
        self.flat_energy = checks.check_number("flat_energy", flat_energy, minimum=1e-6)
        self.layout_weight = checks.check_number("layout_weight", layout_weight)
        self.gradient_weight = checks.check_number("gradient_weight", gradient_weight)
        self.above_noise = checks.check_type("above_noise", above_noise, bool)

    def forward(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
        """The (B,) losses, at least 0."""
        visible, infrared = _like_fused(fused, visible, infrared)
        return functional.structure_loss(fused, visible, infrared, **self._options())

    def _options(self) -> dict[str, Any]:
        names = "window", "flat_energy", "layout_weight", "gradient_weight", "above_noise"
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._options().items())


def _like_fused(fused: Tensor, *sources: Tensor) -> list[Tensor]:
    """The sources, converted to grey or RGB like `fused`."""
    return [functional.match_channels(source, fused.shape[1]) for source in sources]


def _vgg19_features(weights: str | Path | None) -> nn.Sequential:
    """The convolutions of torchvision's VGG-19, with trained weights."""
    # Imported here, as it takes seconds.
    from torchvision.models import VGG19_Weights
    from torchvision.models.vgg import cfgs, make_layers

    url = VGG19_Weights.IMAGENET1K_V1.url
    path = _cached(url) if weights is None else checks.check_file("weights", weights)
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state = {k.removeprefix("features."): v for k, v in state.items() if "classifier" not in k}
        with torch.device("meta"):  # so that no random initialisation precedes the loading
            features = make_layers(cfgs["E"])
        features.load_state_dict(state, assign=True)
        features.float()
    except Exception as error:
        # Not torch's reason, which advises to load without `weights_only`.
        remedy = f"replace it by {url}" + " or delete it, to download it again" * (weights is None)
        raise ValueError(
            f"`weights` must hold the state_dict of torchvision's vgg19, got {path}, which is "
            f"damaged or something else ({type(error).__name__}); {remedy}"
        ) from None
    return features


def cache_path(url: str) -> Path:
    """Where torch's hub cache has the file of `url`, if it has it."""
    return Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])


def _cached(url: str) -> Path:
    """The file of `url` in torch's hub cache, downloaded if it is not there."""
    path = cache_path(url)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem[-8:])
        except (OSError, RuntimeError) as error:  # RuntimeError: cut on its way
            raise FileNotFoundError(
                f"VGG-19 is not in the cache and cannot be downloaded: {error}; fetch {url} on a "
                "machine with a network and pass regularizer=VGGMaxFeatureLoss(weights=path), for "
                f"autofuse() also with layers={AUTOFUSE_LAYERS}"
            ) from error
    return path
