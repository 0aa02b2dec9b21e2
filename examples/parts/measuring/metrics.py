"""The usual metrics of infrared-visible fusion.

All take 8-bit grey images as uint8 arrays of shape (H, W). Higher counts as better, but EN, SD, SF
and AG also reward noise and embossing: compare them with MI, SSIM and Qabf, which use the sources,
and look at the images.

Fused images are evaluated as saved, that is clipped to [0, 1] and rounded to 8 bits. Stretching
each to the full range first, as for some published tables, raises nearly all metrics.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import structural_similarity

Grey = NDArray[np.uint8]
Real = NDArray[np.float64]


def evaluate(fused: Grey, visible: Grey, infrared: Grey) -> dict[str, float]:
    """All measures of one fused image, by their usual abbreviations."""
    return {
        "EN": entropy(fused),
        "SD": standard_deviation(fused),
        "SF": spatial_frequency(fused),
        "AG": average_gradient(fused),
        "MI": mutual_information(fused, visible) + mutual_information(fused, infrared),
        "SCD": sum_of_correlations_of_differences(fused, visible, infrared),
        "SSIM": (similarity(fused, visible) + similarity(fused, infrared)) / 2,
        "Qabf": edge_transfer(fused, visible, infrared),
    }


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of every measure over several images."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def entropy(image: Grey) -> float:
    """EN: entropy of the grey levels in bits, 0 to 8 (Roberts et al., J. Appl. Rem. Sens. 2008)."""
    return _entropy_of_counts(np.bincount(image.ravel(), minlength=256))


def standard_deviation(image: Grey) -> float:
    """SD: standard deviation of the grey levels (Rao, Meas. Sci. Technol. 1997)."""
    return float(image.std())


def spatial_frequency(image: Grey) -> float:
    """SF: root mean square difference of neighbours, both ways (Eskicioglu & Fisher 1995)."""
    levels = image.astype(np.float64)
    down = np.mean(np.diff(levels, axis=0) ** 2)
    across = np.mean(np.diff(levels, axis=1) ** 2)
    return float(np.sqrt(down + across))


def average_gradient(image: Grey) -> float:
    """AG: mean of sqrt((dx^2 + dy^2) / 2) (Cui et al., Opt. Commun. 2015).

    dx and dy are central differences, as in the evaluation code most tables come from; forward
    differences give about a third more.
    """
    down, across = np.gradient(image.astype(np.float64))
    return float(np.mean(np.sqrt((down**2 + across**2) / 2)))


def mutual_information(fused: Grey, source: Grey) -> float:
    """Mutual information of the grey levels in bits; MI is its sum over both sources.

    Qu, Zhang and Yan, "Information measure for performance of image fusion", Electron. Lett. 2002.
    """
    joint = np.bincount(256 * fused.ravel().astype(np.int64) + source.ravel(), minlength=256 * 256)
    return entropy(fused) + entropy(source) - _entropy_of_counts(joint)


def sum_of_correlations_of_differences(fused: Grey, visible: Grey, infrared: Grey) -> float:
    """SCD: what each source contributed, correlated with that source; -2 to 2.

    corr(fused - infrared, visible) + corr(fused - visible, infrared), where a constant image
    correlates with nothing (Aslantas & Bendes, AEU 2015).
    """
    fused_, visible_, infrared_ = (image.astype(np.float64) for image in (fused, visible, infrared))
    from_visible = correlation(fused_ - infrared_, visible_)
    from_infrared = correlation(fused_ - visible_, infrared_)
    return from_visible + from_infrared


def similarity(fused: Grey, source: Grey) -> float:
    """SSIM with one source, Gaussian window of sigma 1.5; the measure is the mean over both.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE
    Transactions on Image Processing 2004.
    """
    return float(
        structural_similarity(
            fused, source, gaussian_weights=True, use_sample_covariance=False, data_range=255
        )
    )


def edge_transfer(fused: Grey, visible: Grey, infrared: Grey) -> float:
    """Qabf: the share of the sources' edges that the fused image has, 0 to 1.

    Strength and orientation of every Sobel edge are compared; strong source edges count more.
    Constants and formulas: Xydeas and Petrovic, "Objective image fusion performance measure",
    Electronics Letters 36(4), 2000.
    """
    fused_edges = _sobel(fused)
    preserved = weight = 0.0
    for source in (visible, infrared):
        strength, orientation = _sobel(source)
        preserved += float(np.sum(strength * _preservation((strength, orientation), fused_edges)))
        weight += float(np.sum(strength))
    return preserved / weight if weight > 0 else 0.0


def _entropy_of_counts(counts: NDArray[np.int64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log2(shares)))


def correlation(first: Real, second: Real) -> float:
    """Pearson's correlation coefficient; 0 if an image is constant."""
    first = first - first.mean()
    second = second - second.mean()
    scale = np.sqrt(np.sum(first**2) * np.sum(second**2))
    return float(np.sum(first * second) / scale) if scale > 0 else 0.0


def _sobel(image: Grey) -> tuple[Real, Real]:
    """Strength and orientation, modulo pi, of the edge at every pixel."""
    levels = image.astype(np.float64)
    # Zero padding, as in the evaluation code most tables come from.
    across = ndimage.sobel(levels, axis=1, mode="constant")
    down = ndimage.sobel(levels, axis=0, mode="constant")
    return np.hypot(across, down), np.arctan2(down, across) % np.pi


def _preservation(source: tuple[Real, Real], fused: tuple[Real, Real]) -> Real:
    """Edge preservation Q of every pixel, from edge strengths and orientations."""
    (source_strength, source_orientation), (fused_strength, fused_orientation) = source, fused
    stronger = np.maximum(source_strength, fused_strength)
    weaker = np.minimum(source_strength, fused_strength)
    strength = np.divide(weaker, stronger, out=np.ones_like(weaker), where=stronger > 0)
    turn = np.abs(source_orientation - fused_orientation)
    orientation = np.abs(turn - np.pi / 2) / (np.pi / 2)  # 1: parallel, 0: at a right angle
    return _sigmoid(strength, 0.9994, -15, 0.5) * _sigmoid(orientation, 0.9879, -22, 0.8)


def _sigmoid(value: Real, top: float, slope: float, middle: float) -> Real:
    return top / (1 + np.exp(slope * (value - middle)))
