"""What a loss does with images before it computes its terms: check values, embed the sources."""

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
    """Embeddings of whole source images, returned by `LanguageDrivenFusionLoss.embed_sources`."""

    visible: Tensor
    """(B, D) float32 unit vectors."""
    infrared: Tensor
    """(B, D) float32 unit vectors."""


class TakesSources(CheckedOptions, Steered):
    """Checks and embeds images with its `encoder`, `data_range` and `precision`."""

    _source_values_checked: bool

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data_range":
            self._source_values_checked = False  # the check used the old range
        super().__setattr__(name, value)

    def check_values(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> None:
        """Check the values of a batch, for example when the loss behaves unexpectedly.

        `forward` checks the values of its first batch only. This waits for the device, so do not
        call it in every step.

        Args:
            fused: as in `forward`.
            visible: as in `forward`.
            infrared: as in `forward`.

        Raises:
            TypeError, ValueError: as in `forward`; sources have values that are not finite or
                outside `data_range`; fused images have values that are not finite or outside the
                range by more than its width.

        Warns:
            UserWarning: the images suggest a mistake, as in `forward`.
        """
        images = {"fused": fused, "visible": visible, "infrared": infrared}
        checks.check_images(images, self.encoder.device)
        checks.check_source_values({"visible": visible, "infrared": infrared}, self.data_range)
        checks.check_fused_values(fused, self.data_range)
        mistakes.warn_of_mistakes(self, fused, visible, infrared)

    @torch.inference_mode(False)
    def embed_sources(self, visible: Tensor, infrared: Tensor) -> SourceEmbeddings:
        """Embed whole source images once, to pass as `sources` to several calls on the same batch.

        This saves time if the same images are used repeatedly: in evaluation, with fixed crops, or
        for several fused images of one pair. It does not with random crops.

        Args:
            visible: (B, 1 | 3, H, W) in `data_range`, H and W at least 16.
            infrared: like `visible`; the number of channels may differ.

        Returns:
            The (B, D) embeddings of both, without gradient.

        Raises:
            TypeError, ValueError: as in `forward`.

        Warns:
            UserWarning: as in `forward`, if this is the first call.
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
            # `fused` is checked in the first step only, too: if a loop scales it differently from
            # its sources, it does so from the start.
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
