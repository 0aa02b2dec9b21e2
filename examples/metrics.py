"""The usual measures of infrared-visible fusion, on 8-bit grey images.

Images are uint8, arrays (H, W) or tensors (1, H, W). EN, SD, SF and AG use the fused image alone
and also reward noise, embossing and stretched contrast: compare them with MI, SSIM, Qabf and
"invented", and look at the images.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import piq
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import structural_similarity

Grey = NDArray[np.uint8]
Real = NDArray[np.float64]

#: Pixels a side. Below, the coarsest of VIF's four scales, and MS-SSIM's five, is empty.
VIF_SIDE, MS_SSIM_SIDE = 41, 161

DEFINITIONS = f"""\
measures, all on 8-bit grey levels from 0 to 255; higher counts as better but for invented and Nabf:
  EN        entropy of the grey levels in bits (Roberts et al., 2008)
  SD        standard deviation of the grey levels (Rao, 1997)
  SF        root mean square difference of neighbouring pixels (Eskicioglu & Fisher, 1995)
  AG        mean of sqrt((dx^2 + dy^2) / 2), central differences: forward ones give a third more
            (Cui et al., 2015)
  MI        mutual information with a source in bits, summed over both (Qu et al., 2002)
  SCD       correlation of a source with the fused image less the other source, summed over both
            (Aslantas & Bendes, 2015)
  SSIM      structural similarity, mean over both sources (Wang et al., 2004); by scikit-image
  Qabf      share of the sources' edges that the fused image has, 0 to 1 (Xydeas & Petrovic, 2000)
  invented  share of the fused image's local variance that no mixture of the sources explains, 0 to
            1, lower is better: embossing and noise
  CC        correlation with a source, mean over both (Ma et al., 2019)
  VIF       visual information fidelity in the pixel domain, summed over both sources (Sheikh &
            Bovik, 2006); by piq; needs at least {VIF_SIDE} pixels per side
  MS-SSIM   SSIM on five scales (Wang et al., 2003); by piq; needs at least {MS_SSIM_SIDE} pixels
  PSNR      255 over the root mean square difference from both sources, in dB (Ma et al., 2019)
  Nabf      edges of the fused image that no source has, 0 to 1, lower is better (Petrovic & Xydeas,
            2005; Shreyamsha Kumar, 2013)
"""


def evaluate(fused: Any, visible: Any, infrared: Any, *, further: bool = False) -> dict[str, float]:
    """The measures above of one image, NaN if not defined; those from CC on only if `further`."""
    fused, visible, infrared = map(_grey, (fused, visible, infrared))
    sources = (visible, infrared)
    row = {
        "EN": entropy(fused),
        "SD": standard_deviation(fused),
        "SF": spatial_frequency(fused),
        "AG": average_gradient(fused),
        "MI": sum(mutual_information(fused, source) for source in sources),
        "SCD": sum_of_correlations_of_differences(fused, visible, infrared),
        "SSIM": sum(similarity(fused, source) for source in sources) / 2,
        "Qabf": edge_transfer(fused, visible, infrared),
        "invented": invented_detail(fused, visible, infrared),
    }
    if further:
        row |= {
            "CC": sum(correlation(_real(fused), _real(source)) for source in sources) / 2,
            "VIF": sum(fidelity(fused, source) for source in sources),
            "MS-SSIM": sum(multiscale_similarity(fused, source) for source in sources) / 2,
            "PSNR": peak_signal_to_noise(fused, visible, infrared),
            "Nabf": artefacts(fused, visible, infrared),
        }
    return row


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every measure over several images."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def entropy(image: Grey) -> float:
    return _entropy_of_counts(np.bincount(image.ravel()))


def _entropy_of_counts(counts: NDArray[np.int64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log2(shares)))


def standard_deviation(image: Grey) -> float:
    return float(image.std())


def spatial_frequency(image: Grey) -> float:
    down, across = (np.mean(np.diff(_real(image), axis=axis) ** 2) for axis in (0, 1))
    return float(np.sqrt(down + across))


def average_gradient(image: Grey) -> float:
    return float(np.mean(gradient_sizes(image)))


def gradient_sizes(image: Grey) -> np.ndarray:
    """Of each pixel, as the average gradient counts it."""
    down, across = np.gradient(_real(image))
    return np.sqrt((down**2 + across**2) / 2)


def mutual_information(fused: Grey, source: Grey) -> float:
    joint = np.bincount(256 * fused.ravel().astype(np.int64) + source.ravel())
    return entropy(fused) + entropy(source) - _entropy_of_counts(joint)


def sum_of_correlations_of_differences(fused: Grey, visible: Grey, infrared: Grey) -> float:
    f, v, r = map(_real, (fused, visible, infrared))
    return correlation(f - r, v) + correlation(f - v, r)


def similarity(fused: Grey, source: Grey) -> float:
    settings = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 255}
    return float(structural_similarity(fused, source, **settings))


def edge_transfer(fused: Grey, visible: Grey, infrared: Grey) -> float:
    """Qabf, with the constants of its authors and zero padding as in the code of most tables."""
    fused_strength, fused_turn = _edges(fused, "constant", (1, 0))
    preserved = weight = 0.0
    for source in (visible, infrared):
        strength, turn = _edges(source, "constant", (1, 0))
        share, parallel = _agreement(strength, turn, fused_strength, fused_turn, 1.0)
        kept = _sigmoid(share, 0.9994, -15, 0.5) * _sigmoid(parallel, 0.9879, -22, 0.8)
        preserved += float(np.sum(strength * kept))
        weight += float(np.sum(strength))
    return preserved / weight if weight > 0 else 0.0


def invented_detail(fused: Grey, visible: Grey, infrared: Grey) -> float:
    """The share of the local variance of `fused` that no local a visible + b infrared + c explains.

    Least squares in windows of 9 x 9 pixels; 0.5 squared grey levels keep flat ones stable. Most
    published methods have 0.03 to 0.04 on road scenes, visibly embossed images 0.09.
    """
    f, v, r = map(_real, (fused, visible, infrared))

    def covariance(x: Real, y: Real) -> Real:
        xy, x, y = (ndimage.uniform_filter(values, 9)[4:-4, 4:-4] for values in (x * y, x, y))
        return xy - x * y

    ff, fv, fr, vr = covariance(f, f), covariance(f, v), covariance(f, r), covariance(v, r)
    vv, rr = covariance(v, v) + 0.5, covariance(r, r) + 0.5
    determinant = vv * rr - vr**2
    a, b = (fv * rr - fr * vr) / determinant, (fr * vv - fv * vr) / determinant
    total = ff.sum()
    return float((ff - a * fv - b * fr).sum() / total) if total > 0 else 0.0


def peak_signal_to_noise(fused: Grey, visible: Grey, infrared: Grey) -> float:
    error = float(np.mean((_real(fused) - _real(np.stack([visible, infrared]))) ** 2))
    return 10 * math.log10(255**2 / error) if error > 0 else math.nan


def fidelity(fused: Grey, source: Grey) -> float:
    if min(fused.shape) < VIF_SIDE or source.min() == source.max():
        return math.nan
    return float(piq.vif_p(_tensor(fused), _tensor(source), data_range=255))


def multiscale_similarity(fused: Grey, source: Grey) -> float:
    if min(fused.shape) < MS_SSIM_SIDE:
        return math.nan
    return float(piq.multi_scale_ssim(_tensor(fused), _tensor(source), data_range=255))


def artefacts(fused: Grey, visible: Grey, infrared: Grey) -> float:
    """Nabf, with the constants and padding of Shreyamsha Kumar's code, which most tables use."""
    fused_strength, fused_turn = _edges(fused, "nearest", (0, 1))
    added = np.ones(fused.shape, bool)
    weighted, total = np.zeros(fused.shape), 0.0
    for source in (visible, infrared):
        strength, turn = _edges(source, "nearest", (0, 1))
        added &= fused_strength > strength
        share, parallel = _agreement(strength, turn, fused_strength, fused_turn, 0.0)
        kept = _sigmoid(share, 0.9999, -19, 0.5) * _sigmoid(parallel, 0.9995, -22, 0.5)
        # Strengths in grey levels per pixel, an eighth of Sobel's.
        weight = np.where(strength >= 16, (strength / 8) ** 1.5, 0.001)
        weighted += (1 - np.sqrt(kept)) * weight
        total += float(weight.sum())
    return float(weighted[added].sum()) / total


def correlation(first: Real, second: Real) -> float:
    """Pearson's correlation coefficient; 0 if an image is constant."""
    first, second = first - first.mean(), second - second.mean()
    scale = np.sqrt(np.sum(first**2) * np.sum(second**2))
    return float(np.sum(first * second) / scale) if scale > 0 else 0.0


def _edges(image: Grey, border: str, axes: tuple[int, int]) -> tuple[Real, Real]:
    """Strength and orientation, modulo pi, of Sobel edges; `axes` decide on that of flat pixels."""
    first, second = (ndimage.sobel(_real(image), axis=axis, mode=border) for axis in axes)
    return np.hypot(first, second), np.arctan2(second, first) % np.pi


def _agreement(
    strength: Real, turn: Real, fused_strength: Real, fused_turn: Real, flat: float
) -> tuple[Real, Real]:
    """Ratio of the strengths, `flat` without any; and 1 for parallel edges to 0 for crossing."""
    weaker, stronger = np.minimum(strength, fused_strength), np.maximum(strength, fused_strength)
    share = np.divide(weaker, stronger, out=np.full_like(weaker, flat), where=stronger > 0)
    return share, np.abs(np.abs(turn - fused_turn) - np.pi / 2) / (np.pi / 2)


def _sigmoid(value: Real, top: float, slope: float, middle: float) -> Real:
    return top / (1 + np.exp(slope * (value - middle)))


def _grey(image: Any) -> Grey:
    return np.asarray(image).reshape(image.shape[-2:])


def _real(image: Grey) -> Real:
    return image.astype(np.float64)


def _tensor(image: Grey) -> torch.Tensor:
    return torch.from_numpy(image)[None, None].float()  # double takes ten times as long
