"""Further metrics for `evaluate.py`: CC, VIF, MS-SSIM, PSNR and Nabf.

Images are 8-bit grey as in `metrics`; a metric that is not defined is NaN. Filters are separable:
results are those of libraries with two-dimensional filters, but much faster.
"""

import math

import numpy as np
from scipy import ndimage

from parts.measuring.metrics import Grey, Real, correlation

#: Scales of MS-SSIM, with the weights of Wang, Simoncelli and Bovik (2003), section 3.2.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: Pixels a side. Below, the coarsest of VIF's four scales, and MS-SSIM's five, is empty.
VIF_SIDE, MS_SSIM_SIDE = 41, 161


def evaluate_further(fused: Grey, visible: Grey, infrared: Grey) -> dict[str, float]:
    """All measures of one fused image, by their usual abbreviations."""
    sources = (visible, infrared)
    return {
        "CC": sum(correlation(_real(fused), _real(source)) for source in sources) / 2,
        "VIF": sum(fidelity(fused, source) for source in sources),
        "MS-SSIM": sum(multiscale_similarity(fused, source) for source in sources) / 2,
        "PSNR": peak_signal_to_noise(fused, visible, infrared),
        "Nabf": artefacts(fused, visible, infrared),
    }


def peak_signal_to_noise(fused: Grey, visible: Grey, infrared: Grey) -> float:
    """PSNR in dB for a peak of 255 and the mean squared error to both sources; NaN if that is 0.

    Ma, Ma and Li, "Infrared and visible image fusion methods and applications: a survey",
    Information Fusion 45, 2019, which has CC, the mean correlation with both sources, as well.
    """
    errors = [np.mean((_real(fused) - _real(source)) ** 2) for source in (visible, infrared)]
    error = float(np.mean(errors))
    return 10 * math.log10(255**2 / error) if error > 0 else math.nan


def fidelity(fused: Grey, source: Grey) -> float:
    """VIF with one source; the metric is the sum over both sources.

    It is 1 if the images are equal, 0 if no information is left, and above 1 if contrast was added;
    NaN if the source is constant or a side is below 41 pixels. Pixel domain, four scales: Sheikh
    and Bovik, "Image information and visual quality", IEEE Transactions on Image Processing 15(2),
    2006; the constants are those of their published code.
    """
    if min(fused.shape) < VIF_SIDE:
        return math.nan
    noise, tiny = 2.0, 1e-10  # variance of visual noise; smaller variances count as 0
    image, reference = _real(fused), _real(source)
    kept = total = 0.0
    for scale in range(4):
        width = 2 ** (4 - scale) + 1
        window = _gaussian(width, width / 5)
        if scale > 0:
            image, reference = (_filtered(i, window)[::2, ::2] for i in (image, reference))
        _, _, of_image, of_reference, both = _moments(image, reference, window)
        of_image, of_reference = np.maximum(of_image, 0), np.maximum(of_reference, 0)
        gain = both / (of_reference + tiny)
        rest = of_image - gain * both
        without = of_reference < tiny
        gain[without], rest[without], of_reference[without] = 0, of_image[without], 0
        flat = of_image < tiny
        gain[flat], rest[flat] = 0, 0
        opposite = gain < 0
        gain[opposite], rest[opposite] = 0, of_image[opposite]
        rest = np.maximum(rest, tiny)
        kept += float(np.log10(1 + gain**2 * of_reference / (rest + noise)).sum())
        total += float(np.log10(1 + of_reference / noise).sum())
    return kept / total if total > 0 else math.nan


def multiscale_similarity(fused: Grey, source: Grey) -> float:
    """MS-SSIM with one source, up to 1; NaN if a side is below 161 pixels.

    The measure is the mean over both sources. Wang, Simoncelli and Bovik, "Multiscale structural
    similarity for image quality assessment", Asilomar Conference 2003. As in their code, windows
    lie within the image, and an odd row or column is halved with its own reflection.
    """
    if min(fused.shape) < MS_SSIM_SIDE:
        return math.nan
    for_luminance, for_contrast = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    window = _gaussian(11, 1.5)
    first, second = _real(fused), _real(source)
    similarity = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        mean1, mean2, of_first, of_second, both = _moments(first, second, window)
        term = (2 * both + for_contrast) / (of_first + of_second + for_contrast)
        if scale == len(SCALE_WEIGHTS) - 1:
            term *= (2 * mean1 * mean2 + for_luminance) / (mean1**2 + mean2**2 + for_luminance)
        similarity *= max(float(term.mean()), 0.0) ** weight
        first, second = _halved(first), _halved(second)
    return similarity


def artefacts(fused: Grey, visible: Grey, infrared: Grey) -> float:
    """Nabf: edges of the fused image that neither source has, 0 to 1; lower is better.

    Petrovic and Xydeas, "Objective image fusion performance characterisation", ICCV 2005, as
    modified by Shreyamsha Kumar, "Multifocus and multispectral image fusion based on pixel
    significance using discrete cosine harmonic wavelet transform", Signal, Image and Video
    Processing 7, 2013. The constants are those of his code, which most published tables use.
    Images are padded by repeating the border pixels.
    """
    fused_edges = _edges(fused)
    added = np.ones(fused.shape, bool)
    weighted, total = np.zeros(fused.shape), 0.0
    for source in (visible, infrared):
        strength, orientation = _edges(source)
        added &= fused_edges[0] > strength
        stronger = np.maximum(strength, fused_edges[0])
        share = np.minimum(strength, fused_edges[0]) / np.where(stronger > 0, stronger, 1)
        turn = np.abs(np.abs(orientation - fused_edges[1]) - np.pi / 2) * 2 / np.pi
        of_strength = 0.9999 / (1 + np.exp(-19 * (share - 0.5)))
        of_orientation = 0.9995 / (1 + np.exp(-22 * (turn - 0.5)))
        weight = np.where(strength >= 2, strength**1.5, 0.001)
        weighted += (1 - np.sqrt(of_strength * of_orientation)) * weight
        total += float(weight.sum())
    return float(weighted[added].sum()) / total


def _edges(image: Grey) -> tuple[Real, Real]:
    """Strength, in grey levels per pixel, and orientation modulo pi."""
    across, down = (ndimage.sobel(_real(image), axis=axis, mode="nearest") / 8 for axis in (1, 0))
    return np.hypot(across, down), np.arctan2(across, down) % np.pi


def _moments(first: Real, second: Real, window: Real) -> tuple[Real, Real, Real, Real, Real]:
    """Means, variances and covariance under every position of the window."""
    mean1, mean2, square1, square2, product = (
        _filtered(values, window)
        for values in (first, second, first * first, second * second, first * second)
    )
    return mean1, mean2, square1 - mean1**2, square2 - mean2**2, product - mean1 * mean2


def _filtered(image: Real, window: Real) -> Real:
    """The image filtered along both axes, only where the window lies inside the image."""
    inside = slice(len(window) // 2, -(len(window) // 2))
    image = ndimage.correlate1d(image, window, axis=0)[inside]
    return ndimage.correlate1d(image, window, axis=1)[:, inside]


def _halved(image: Real) -> Real:
    height, width = image.shape
    image = np.pad(image, ((0, height % 2), (0, width % 2)), mode="symmetric")
    return (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4


def _gaussian(width: int, deviation: float) -> Real:
    offsets = np.arange(width) - width // 2
    weights = np.exp(-(offsets**2) / (2 * deviation**2))
    return weights / weights.sum()


def _real(image: Grey) -> Real:
    return image.astype(np.float64)
