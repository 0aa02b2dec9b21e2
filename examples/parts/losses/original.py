"""The original losses of DenseFuse, U2Fusion and SwinFusion.

They allow comparing the same network with its original loss and with the language-driven loss. Each
module returns the total when called, and a named tuple of all terms from
`terms(fused, visible, infrared)`, like `clip_fusion_loss.LanguageDrivenFusionLoss`. Images are
(N, 1, H, W); sources lie in [0, 1], fused images may exceed it. All terms are means over samples,
so the mean over batches of equal size is the loss of all samples.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VGG16_Weights, vgg16


class ReconstructionTerms(NamedTuple):
    """Parts of `ReconstructionLoss`, each () and as weighted in the total."""

    total: Tensor
    pixels: Tensor
    ssim: Tensor


class ReconstructionLoss(nn.Module):
    """DenseFuse's: ``MSE + 100 (1 - SSIM)`` between an image and its reconstruction.

    It uses no fused images: encoder and decoder are trained on single images, and the features of
    two images are added only at inference. As in the original, the squared error is computed on
    grey levels from 0 to 255, although images are in [0, 1].

    With `multiscale` the SSIM is that of the PyTorch port: over five scales, each mapped from
    [-1, 1] to [0, 1] first. Images must then have more than 160 pixels per side.

    Li and Wu, IEEE Transactions on Image Processing 28(5), 2019.

    Args:
        ssim_weight: 100 in most of the original's experiments, which also try 1, 10 and 1000.
        multiscale: whether to use SSIM over five scales.
    """

    LEVELS = 255.0

    def __init__(self, ssim_weight: float = 100.0, *, multiscale: bool = False) -> None:
        super().__init__()
        self.ssim_weight = ssim_weight
        self.similarity = multiscale_similarity if multiscale else similarity

    def forward(self, reconstructed: Tensor, image: Tensor) -> Tensor:
        return self.terms(reconstructed, image).total

    def terms(self, reconstructed: Tensor, image: Tensor) -> ReconstructionTerms:
        """Both (N, 1, H, W), at least 11 x 11; `image` in [0, 1]."""
        pixels = self.LEVELS**2 * F.mse_loss(reconstructed, image)
        ssim = self.ssim_weight * (1 - self.similarity(reconstructed, image).mean())
        return ReconstructionTerms(pixels + ssim, pixels, ssim)


class U2FusionTerms(NamedTuple):
    """Parts of `U2FusionLoss`, each () and as weighted in the total."""

    total: Tensor
    ssim: Tensor
    pixels: Tensor


class U2FusionLoss(nn.Module):
    """U2Fusion's: each source is weighted by its information.

    ::

        sum_s w_s (1 - SSIM(fused, s)) + 20 sum_s w_s MSE(fused, s),   s = visible, infrared
        w = softmax(information(visible), information(infrared))       per sample

    Xu et al., IEEE Transactions on Pattern Analysis and Machine Intelligence 44(1), 2022.

    Args:
        information: a module that maps images (N, 1, H, W) to their information (N,); the
            original's is `VGGInformation()`.
        pixel_weight: weight of the squared error, 20 in the original.
    """

    def __init__(self, information: nn.Module, pixel_weight: float = 20.0) -> None:
        super().__init__()
        self.information = information
        self.pixel_weight = pixel_weight

    def forward(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
        return self.terms(fused, visible, infrared).total

    def terms(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> U2FusionTerms:
        """All (N, 1, H, W), at least 11 x 11; the sources in [0, 1]."""
        sources = (visible, infrared)
        with torch.no_grad():
            weights = torch.stack([self.information(image) for image in sources]).softmax(0)
        differences = torch.stack([1 - similarity(fused, image) for image in sources])
        errors = torch.stack([(fused - image).square().mean((1, 2, 3)) for image in sources])
        ssim = (weights * differences).sum(0).mean()
        pixels = self.pixel_weight * (weights * errors).sum(0).mean()
        return U2FusionTerms(ssim + pixels, ssim, pixels)


class VGGInformation(nn.Module):
    """The information of an image: gradient energy of its VGG-16 features, divided by `scale`.

    As in the original and its ports, the image is first resized to 224 x 224 pixels with nearest
    neighbours. The features before each of the five poolings are compared with the mean of their
    eight neighbours; squares are averaged over channels, pixels and layers. The network is frozen.

    Args:
        weights: a file with the features' `state_dict`; None loads them from torch's hub cache or
            downloads them. They must be trained on grey levels from 0 to 255 minus a mean, as the
            original VGG: `scale` depends on it.
        scale: the divisor; 3200 in the original for visible and infrared images.

    Raises:
        FileNotFoundError: there is no such file, or the download failed.
        ValueError: the file does not hold the features of VGG-16.
    """

    #: Channel means that the weights were trained with, of grey levels from 0 to 255.
    MEAN = (123.0, 117.0, 104.0)
    SIZE = 224

    def __init__(self, weights: Path | None = None, scale: float = 3200.0) -> None:
        super().__init__()
        self.features = _vgg16_features(weights).requires_grad_(False)
        self.scale = scale
        mean = torch.tensor(self.MEAN).view(3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        neighbours = torch.full((1, 1, 3, 3), 1 / 8)
        neighbours[0, 0, 1, 1] = -1
        self.register_buffer("neighbours", neighbours, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] -> (N,)."""
        energies = []
        features = 255 * F.interpolate(image, (self.SIZE, self.SIZE), mode="nearest") - self.mean
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                energies.append(self._gradient_energy(features))
            features = layer(features)
        return torch.stack(energies).mean(0) / self.scale

    def _gradient_energy(self, features: Tensor) -> Tensor:
        channels = features.flatten(0, 1)[:, None]
        padded = F.pad(channels, (1, 1, 1, 1), mode="replicate")
        gradients = F.conv2d(padded, self.neighbours)
        return gradients.view_as(features).square().mean((1, 2, 3))


class SwinFusionTerms(NamedTuple):
    """Parts of `SwinFusionLoss`, each () and as weighted in the total, in the original's order."""

    total: Tensor
    texture: Tensor
    intensity: Tensor
    ssim: Tensor


class SwinFusionLoss(nn.Module):
    """SwinFusion's: maximum intensity, stronger edges, and structural similarity.

    ::

        20 |fused - max(visible, infrared)|
        + 20 |edges(fused) - max(edges(visible), edges(infrared))|
        + 10 (1 - w SSIM(fused, visible) - (1 - w) SSIM(fused, infrared))

    edges is the sum of the absolute Sobel gradients along both axes. For edges and SSIM the image
    is padded with zeros, as in the original. w is the visible image's share of the sources' mean
    edge strength, here per sample and in the original per batch.

    Ma et al., IEEE/CAA Journal of Automatica Sinica 9(7), 2022.
    """

    def __init__(
        self,
        *,
        texture_weight: float = 20.0,
        intensity_weight: float = 20.0,
        ssim_weight: float = 10.0,
    ) -> None:
        super().__init__()
        self.texture_weight = texture_weight
        self.intensity_weight = intensity_weight
        self.ssim_weight = ssim_weight

    def forward(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
        return self.terms(fused, visible, infrared).total

    def terms(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> SwinFusionTerms:
        """All (N, 1, H, W), at least 11 x 11; the sources in [0, 1]."""
        visible_edges, infrared_edges = sobel_edges(visible), sobel_edges(infrared)
        stronger = torch.maximum(visible_edges, infrared_edges)
        texture = self.texture_weight * F.l1_loss(sobel_edges(fused), stronger)
        brighter = torch.maximum(visible, infrared)
        intensity = self.intensity_weight * F.l1_loss(fused, brighter)
        of_visible, of_infrared = (
            edges.mean((1, 2, 3)) + 1e-8 for edges in (visible_edges, infrared_edges)
        )
        share = of_visible / (of_visible + of_infrared)
        like_visible, like_infrared = (
            similarity(fused, source, black_border=True) for source in (visible, infrared)
        )
        structure = share * like_visible + (1 - share) * like_infrared
        ssim = self.ssim_weight * (1 - structure.mean())
        return SwinFusionTerms(texture + intensity + ssim, texture, intensity, ssim)


def similarity(fused: Tensor, source: Tensor, *, black_border: bool = False) -> Tensor:
    """(N,) structural similarity of images in [0, 1], differentiable, Gaussian window of 11.

    Images are padded by reflection, or with zeros if `black_border`. Wang et al., IEEE Transactions
    on Image Processing 13(4), 2004.
    """
    # Imported here, as the import takes seconds and the language-driven loss does not need it.
    from torchmetrics.functional.image import structural_similarity_index_measure

    # torchmetrics allows values outside the range, which untrained networks produce.
    if not black_border:
        return structural_similarity_index_measure(fused, source, data_range=1.0, reduction="none")
    # Zero margins as wide as half a window: the windows of the image's pixels end within them.
    padded = (F.pad(image, [5] * 4) for image in (fused, source))
    _, whole = structural_similarity_index_measure(*padded, data_range=1.0, return_full_image=True)
    return whole[..., 5:-5, 5:-5].mean((1, 2, 3))


def multiscale_similarity(fused: Tensor, source: Tensor) -> Tensor:
    """(N,) multi-scale structural similarity, each scale's mapped from [-1, 1] to [0, 1].

    Wang, Simoncelli and Bovik, Asilomar Conference on Signals, Systems and Computers 2003.
    """
    from torchmetrics.functional.image import (  # as above
        multiscale_structural_similarity_index_measure,
    )

    return multiscale_structural_similarity_index_measure(
        fused, source, data_range=1.0, normalize="simple", reduction="none"
    )


def sobel_edges(images: Tensor) -> Tensor:
    """(N, 1, H, W) edge strengths: sum of absolute Sobel gradients, with zero padding."""
    across = images.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([across, across.T])[:, None]
    return F.conv2d(images, kernels, padding=1).abs().sum(1, keepdim=True)


def _vgg16_features(weights: Path | None) -> nn.Sequential:
    """torchvision's VGG-16 up to its last pooling, with the original authors' weights."""
    pretrained = VGG16_Weights.IMAGENET1K_FEATURES
    if weights is None:
        try:
            return vgg16(weights=pretrained).features
        except OSError as error:
            raise FileNotFoundError(
                "the weights of VGG-16 are not in the cache and could not be downloaded; fetch "
                f"{pretrained.url} on a machine with a network and pass the file: {error}"
            ) from error
    if not weights.is_file():
        raise FileNotFoundError(
            f"there is no file {weights} with weights of VGG-16; check the path"
        )
    features = vgg16().features
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        features.load_state_dict(_features_alone(state))
    except Exception as error:
        raise ValueError(
            f"{weights} does not hold the features of torchvision's VGG-16: {error}"
        ) from error
    return features


def _features_alone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix("features."): values
        for name, values in state.items()
        if not name.startswith("classifier.")
    }
