"""What a loss does with images before it scores them: look at the first ones, embed them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function

from . import checks, functional, mistakes
from .options import CheckedOptions
from .steering import Steered

__all__ = ["SourceEmbeddings", "TakesSources"]


class SourceEmbeddings(NamedTuple):
    """Embeddings of the whole source images, made by `LanguageDrivenFusionLoss.embed_sources`."""

    visible: Tensor
    """(B, D) float32 unit vectors."""
    infrared: Tensor
    """(B, D) float32 unit vectors."""


class TakesSources(CheckedOptions, Steered):
    """Checks and embeds images with its `encoder`, as `data_range` and `precision` say."""

    _source_values_checked: bool

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data_range":
            self._source_values_checked = False  # what was seen was seen under the old one
        super().__setattr__(name, value)

    def check_values(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> None:
        """Look into a batch, when the loss is odd: `forward` looks at the first one alone.

        Waits for the device; not for every step.

        Args:
            fused: as in `forward`.
            visible: as in `forward`.
            infrared: as in `forward`.

        Raises:
            TypeError, ValueError: as in `forward`; sources outside `data_range` or NaN; fused
                images that are not finite, or farther outside the range than it is wide.
        """
        images = {"fused": fused, "visible": visible, "infrared": infrared}
        checks.check_images(images, self.encoder.device)
        checks.check_source_values({"visible": visible, "infrared": infrared}, self.data_range)
        checks.check_fused_values(fused, self.data_range)
        mistakes.warn_of_mistakes(self, fused, visible, infrared)

    @torch.inference_mode(False)
    def embed_sources(self, visible: Tensor, infrared: Tensor) -> SourceEmbeddings:
        """Embed whole source images once, to pass back in with each call on the same batch.

        Pays where the very same images come again and again: evaluation, fixed crops, several
        fused images of one pair. Random crops are new images every time.

        Args:
            visible: (B, 1 | 3, H, W) in `data_range`.
            infrared: like `visible`.

        Returns:
            The embeddings, without gradient.

        Raises:
            TypeError, ValueError: as in `forward`.
        """
        checks.check_images({"visible": visible, "infrared": infrared}, self.encoder.device)
        self._check_source_values_once(visible, infrared)
        return self._embed_sources(visible, infrared)

    def _check_source_values_once(
        self, visible: Tensor, infrared: Tensor, fused: Tensor | None = None
    ) -> None:
        if not self._source_values_checked:
            checks.check_source_values({"visible": visible, "infrared": infrared}, self.data_range)
            self._source_values_checked = True
            # `fused` too is read here, in the first step alone: a loop that scales it otherwise
            # than its sources does so from the start.
            mistakes.warn_of_mistakes(self, fused, visible, infrared)

    def _to_unit_range(self, images: Tensor) -> Tensor:
        low, high = self.data_range
        images = images.float()
        return images if (low, high) == (0.0, 1.0) else (images - low) / (high - low)

    def _encode(self, images: Tensor) -> Tensor:
        with record_function("clip_fusion_loss.encode"):
            return self.encoder.encode_image(images, precision=self.precision)

    @torch.no_grad()
    def _embed_sources(self, visible: Tensor, infrared: Tensor) -> SourceEmbeddings:
        channels = max(visible.shape[1], infrared.shape[1])
        pair = [
            functional.resize_images(self._to_unit_range(source), self.encoder.image_size)
            for source in (visible, infrared)
        ]
        pair = [functional.match_channels(images, channels) for images in pair]
        # Both in one pass of the image tower.
        return SourceEmbeddings(*self._encode(torch.cat(pair)).chunk(2))
