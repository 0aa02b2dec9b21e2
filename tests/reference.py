"""The loss once more, in float64 and in loops, from the paper's equations.

Shares nothing with the package but CLIP's weights and, so that both see the same patches, the
sampling maps: those have their own test.
"""

import copy
import functools
import math
from typing import NamedTuple

import numpy as np
import torch

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Terms(NamedTuple):
    direction: torch.Tensor
    patch: torch.Tensor
    similarity: torch.Tensor
    kept: torch.Tensor


def unit(vector):
    return vector / torch.linalg.vector_norm(vector)


def cosine(a, b):
    return (a @ b) / (torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))


@functools.cache
def resize_matrix(size_in: int, size_out: int) -> torch.Tensor:
    """Anti-aliased bilinear resizing along one axis as a (size_out, size_in) matrix."""
    scale = size_in / size_out
    support = max(scale, 1.0)
    matrix = np.zeros((size_out, size_in))
    for row in range(size_out):
        center = (row + 0.5) * scale
        for column in range(size_in):
            matrix[row, column] = max(0.0, 1 - abs(column + 0.5 - center) / support)
        matrix[row] /= matrix[row].sum()
    return torch.from_numpy(matrix)


def resize(image, size):
    """(C, H, W) float64 to (C, *size)."""
    rows = resize_matrix(image.shape[1], size[0])
    columns = resize_matrix(image.shape[2], size[1])
    return rows @ image @ columns.T


def grey(image):
    if image.shape[0] == 1:
        return image
    return (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2])[None]


def reflect(position, size):
    """Mirror pixel positions about the image's outer edges, at -0.5 and size - 0.5."""
    span = (position + 0.5) % (2 * size)
    return torch.minimum(span, 2 * size - span) - 0.5


def warp(image, matrix, size):
    """Bilinear samples of a (C, H, W) image where `matrix` (2, 3) sends each output pixel."""
    _, height, width = image.shape
    y = (2 * torch.arange(size[0], dtype=torch.float64) + 1) / size[0] - 1
    x = (2 * torch.arange(size[1], dtype=torch.float64) + 1) / size[1] - 1
    y, x = torch.meshgrid(y, x, indexing="ij")
    matrix = matrix.double()
    column = ((matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] + 1) * width - 1) / 2
    row = ((matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] + 1) * height - 1) / 2
    column = reflect(column, width).clamp(0, width - 1)
    row = reflect(row, height).clamp(0, height - 1)
    left, top = column.floor().long(), row.floor().long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    a, b = column - left, row - top
    return (
        image[:, top, left] * (1 - a) * (1 - b)
        + image[:, top, right] * a * (1 - b)
        + image[:, bottom, left] * (1 - a) * b
        + image[:, bottom, right] * a * b
    )


def entropy(image) -> float:
    counts, _ = np.histogram(np.clip(image.detach().numpy(), 0, 1), bins=256, range=(0, 1))
    total = 0.0
    for count in counts:
        if count:
            share = count / counts.sum()
            total -= share * math.log2(share)
    return total


class Reference:
    """The paper's terms for a batch, a sample and a patch at a time."""

    def __init__(self, model, tokenizer, fused, visible, infrared, others=()):
        """`others` are further texts for the fused image, as (texts, weight)."""
        self.model = copy.deepcopy(model).double()
        self.model.eval()
        size = model.visual.image_size
        self.size = size if isinstance(size, tuple) else (size, size)
        t_f, t_v, t_r = (self.embed_texts(tokenizer, t) for t in (fused, visible, infrared))
        self.d_v = unit(t_f - t_v)
        self.d_r = unit(t_f - t_r)
        self.wanted = [(1.0, self.d_v, self.d_r)]
        for texts, weight in others:
            t = self.embed_texts(tokenizer, texts)
            self.wanted.append((weight, unit(t - t_v), unit(t - t_r)))

    def embed_texts(self, tokenizer, texts):
        vectors = [unit(self.model.encode_text(tokenizer([text]))[0]) for text in texts]
        return unit(sum(vectors) / len(vectors)).detach()

    def embed_image(self, image):
        image = resize(image, self.size)
        image = image.expand(3, -1, -1)
        image = (image - torch.tensor(MEAN).double()[:, None, None]) / torch.tensor(STD).double()[
            :, None, None
        ]
        return unit(self.model.encode_image(image[None])[0])

    def direction(self, e, v_v, v_r):
        total = torch.zeros((), dtype=torch.float64)
        for weight, d_v, d_r in self.wanted:
            toward = 1 if weight > 0 else -1  # an opposite repels
            from_visible = 1 - toward * cosine(unit(e - v_v), d_v)
            from_infrared = 1 - toward * cosine(unit(e - v_r), d_r)
            total = total + abs(weight) * (0.5 * from_visible + 0.5 * from_infrared)
        return total

    def terms(self, fused, visible, infrared, transforms, *, threshold=6.0, over="all", short=64):
        """Per-sample terms; images (B, C, H, W) float64, transforms (B, N, 2, 3)."""
        rows = []
        for f, v, r, maps in zip(fused, visible, infrared, transforms, strict=True):
            v_f, v_v, v_r = self.embed_image(f), self.embed_image(v), self.embed_image(r)
            f, v, r = (self.shrink(image, short) for image in (f, v, r))
            losses, kept = [], 0
            for matrix in maps:
                sources = [warp(grey(image), matrix, self.size) for image in (v, r)]
                if all(entropy(source) > threshold for source in sources):
                    kept += 1
                    e = self.embed_image(warp(f, matrix, self.size))
                    losses.append(self.direction(e, v_v, v_r))
            count = len(maps) if over == "all" else max(kept, 1)
            rows.append(
                Terms(
                    self.direction(v_f, v_v, v_r),
                    sum(losses, torch.zeros((), dtype=torch.float64)) / count,
                    0.5 * (1 - cosine(v_f, v_v)) + 0.5 * (1 - cosine(v_f, v_r)),
                    torch.tensor(kept / len(maps), dtype=torch.float64),
                )
            )
        return Terms(*map(torch.stack, zip(*rows, strict=True)))

    @staticmethod
    def shrink(image, short):
        height, width = image.shape[1:]
        if min(height, width) <= short:
            return image
        factor = short / min(height, width)
        return resize(image, (round(height * factor), round(width * factor)))
