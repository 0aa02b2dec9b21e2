"""LanguageDrivenFusionLoss: check, embed, score, reduce."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import checks, functional
from .encoder import FrozenCLIP
from .fusion_model import EmbeddedFusionModel
from .objective import FusionObjective
from .regularizers import IntensityGradientLoss, VGGMaxFeatureLoss

__all__ = ["FusionLossTerms", "LanguageDrivenFusionLoss"]


class FusionLossTerms(NamedTuple):
    """The parts of the loss, unweighted, each () or, with ``reduction="none"``, (B,)."""

    total: Tensor
    """The weighted sum: what `LanguageDrivenFusionLoss` returns."""
    direction: Tensor
    """Direction loss of the whole fused image."""
    patch: Tensor
    """Direction loss of its patches."""
    similarity: Tensor
    """Cosine distance to the sources."""
    regularizer: Tensor
    """What the regularizer returned."""
    kept: Tensor
    """Fraction of the patches that passed the entropy filter; a mean also under "sum"."""


class LanguageDrivenFusionLoss(nn.Module):
    """A sentence says what the fused image should be; a frozen CLIP makes it a training signal.

    Per sample, with the defaults those of the paper (arXiv 2402.16267)::

        total =  2 * direction(v_f)                              # the whole fused image
              + 10 * mean_i m_i direction(v_patch_i)             # its random patches
              +  6 * (1 - (cos(v_f, v_v) + cos(v_f, v_r)) / 2)   # stay with the sources
              + 10 * regularizer(fused, visible, infrared)

        direction(e) = 1 - (cos(e - v_v, t_f - t_v) + cos(e - v_r, t_f - t_r)) / 2

    where v are CLIP's vectors of the fused, visible and infrared image, t those of the texts,
    and m_i is 1 if the patch has grey-level entropy above `min_patch_entropy` in both sources.
    `functional` holds the formulas.

    The texts are embedded once, here and in `set_objective`. Nothing of CLIP appears in
    `state_dict()` or `parameters()`.

    Args:
        objective: the texts; or one text, for `FusionObjective(fused=text)`; or an
            `EmbeddedFusionModel` made with this encoder, which needs no text tower.
        encoder: the CLIP; None loads the paper's ViT-B/32 (`FrozenCLIP.from_pretrained()`).
        direction_weight: weight of the direction term (paper: 2).
        patch_weight: weight of the patch term (paper: 10). At 0 no patches are encoded.
        similarity_weight: weight of the similarity term (paper: 6).
        regularizer: a module called ``(fused, visible, infrared) -> (B,)`` on float32 images in
            [0, 1]; the paper's is `VGGMaxFeatureLoss()`. None: no such term.
        regularizer_weight: its weight (paper: 10). At 0 it is not called.
        num_patches: random patches a sample (paper: 32).
        patch_scale: range of a patch's side, as a fraction of the image's short side (paper:
            0.5 to 0.8).
        min_patch_entropy: patches must have more bits than this in both sources (paper: 6);
            None keeps all.
        patch_reduction: "all" counts dropped patches as zeros in the mean, as the paper's code
            does; "kept" averages over the kept ones.
        data_range: (low, high) of the images that come in.
        reduction: over the batch: "mean", "sum" or "none".
        generator: source of the patches' random numbers; None is torch's global CPU generator.

    Raises:
        TypeError, ValueError: an argument is not as described; the message says what to do.
        FileNotFoundError: with ``encoder=None``, see `FrozenCLIP.from_pretrained`.

    Example::

        criterion = LanguageDrivenFusionLoss.paper().to(device)
        loss = criterion(network(visible, infrared), visible, infrared)
        loss.backward()
    """

    def __init__(
        self,
        objective: FusionObjective | EmbeddedFusionModel | str = FusionObjective(),
        *,
        encoder: FrozenCLIP | None = None,
        direction_weight: float = 2.0,
        patch_weight: float = 10.0,
        similarity_weight: float = 6.0,
        regularizer: nn.Module | None = None,
        regularizer_weight: float = 10.0,
        num_patches: int = 32,
        patch_scale: tuple[float, float] = (0.5, 0.8),
        min_patch_entropy: float | None = 6.0,
        patch_reduction: str = "all",
        data_range: tuple[float, float] = (0.0, 1.0),
        reduction: str = "mean",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        checks.check_number("direction_weight", direction_weight)
        checks.check_number("patch_weight", patch_weight)
        checks.check_number("similarity_weight", similarity_weight)
        checks.check_number("regularizer_weight", regularizer_weight)
        checks.check_number("num_patches", num_patches, minimum=1, whole=True)
        if min_patch_entropy is not None:
            checks.check_number("min_patch_entropy", min_patch_entropy, maximum=8)
        checks.check_choice("patch_reduction", patch_reduction, ("all", "kept"))
        checks.check_choice("reduction", reduction, ("mean", "sum", "none"))
        checks.check_type("regularizer", regularizer, nn.Module, optional=True)
        checks.check_type("generator", generator, torch.Generator, optional=True)
        checks.check_type("encoder", encoder, FrozenCLIP, optional=True)
        self.patch_scale = checks.check_interval(
            "patch_scale", patch_scale, minimum=0.05, maximum=1.0, empty=True
        )
        self.data_range = checks.check_interval("data_range", data_range)
        self.direction_weight = direction_weight
        self.patch_weight = patch_weight
        self.similarity_weight = similarity_weight
        self.regularizer = regularizer
        self.regularizer_weight = regularizer_weight
        self.num_patches = num_patches
        self.min_patch_entropy = min_patch_entropy
        self.patch_reduction = patch_reduction
        self.reduction = reduction
        self.generator = generator
        self.encoder = FrozenCLIP.from_pretrained() if encoder is None else encoder
        self.set_objective(objective)
        self._source_values_checked = False

    @classmethod
    def paper(
        cls,
        objective: FusionObjective | EmbeddedFusionModel | str = FusionObjective(),
        **options: Any,
    ) -> LanguageDrivenFusionLoss:
        """The paper's loss: CLIP ViT-B/32, VGG-19 regularizer, weights 2 / 10 / 6 / 10.

        Args:
            objective: see the class.
            options: any keyword of the class, to depart from the paper in just that.

        Raises:
            FileNotFoundError: weights that are neither in the caches nor within reach.
        """
        if "regularizer" not in options:
            options["regularizer"] = VGGMaxFeatureLoss()
        return cls(objective, **options)

    @classmethod
    def tiny(
        cls,
        objective: FusionObjective | EmbeddedFusionModel | str = FusionObjective(),
        **options: Any,
    ) -> LanguageDrivenFusionLoss:
        """The loss with the embedded CLIP and weights that suit it: no download, no network.

        For demonstrations and continuous integration; see `FrozenCLIP.tiny`. The regularizer
        is `IntensityGradientLoss()`. The weights were found by training fusion networks with
        this very model: it has its own scale, and the paper's weights over-drive it.

        Args:
            objective: see the class.
            options: any keyword of the class.
        """
        defaults: dict[str, Any] = {
            "encoder": FrozenCLIP.tiny(),
            "direction_weight": 0.5,
            "patch_weight": 2.5,
            "similarity_weight": 6.0,
            "regularizer": IntensityGradientLoss(),
            "regularizer_weight": 10.0,
        }
        return cls(objective, **(defaults | options))

    @property
    def objective(self) -> FusionObjective:
        """The texts in force."""
        return self.fusion_model.objective

    def set_objective(self, objective: FusionObjective | EmbeddedFusionModel | str) -> None:
        """Swap the objective, at any time; the next call uses it.

        Vectors of texts that this encoder has seen before are reused. On an error the old
        objective stays.

        Args:
            objective: as in the class. A plain text keeps no texts of the old objective: the
                modalities' are the paper's again.

        Raises:
            TypeError, ValueError: see `FusionObjective` and `EmbeddedFusionModel`.
            RuntimeError: new texts, but the encoder's text tower was dropped.
        """
        if isinstance(objective, str):
            objective = FusionObjective(fused=objective)
        if isinstance(objective, FusionObjective):
            fusion_model = EmbeddedFusionModel(objective, self.encoder)
        else:
            checks.check_type("objective", objective, EmbeddedFusionModel)
            objective.check_encoder(self.encoder)
            fusion_model = copy.deepcopy(objective)  # it may serve other losses elsewhere
        self.fusion_model = fusion_model.to(self.encoder.device)

    def forward(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
        """The loss.

        Args:
            fused: (B, 1 | 3, H, W), H and W at least 16. Values outside `data_range` are let
                pass: an untrained network may produce them, and clamping kills its gradient.
            visible: like `fused` in batch, height and width, with 1 or 3 channels of its own,
                in `data_range`. Carries no gradient.
            infrared: like `visible`.

        Returns:
            () float32, or (B,) with ``reduction="none"``; differentiable in `fused`.

        Raises:
            TypeError, ValueError: shapes, dtypes or devices that do not go together (every
                call); sources outside `data_range` or NaN (first call only, since looking
                costs a synchronisation with the device).
        """
        return self.terms(fused, visible, infrared).total

    def terms(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> FusionLossTerms:
        """The loss and its unweighted parts, for logging; arguments as in `forward`.

        The patch and regularizer terms read 0 where their weight is 0: they are not computed.
        """
        checks.check_images(fused, visible, infrared, self.encoder.device)
        self._check_source_values_once(visible, infrared)
        fused, visible, infrared = (
            self._to_unit_range(image) for image in (fused, visible.detach(), infrared.detach())
        )
        visible_embedding, infrared_embedding = self._embed_sources(visible, infrared)
        patches, kept, owner = self._patches(fused, visible, infrared)
        # One pass of the image tower: the whole fused images, then all patches that count.
        whole = functional.resize_images(fused, self.encoder.image_size)
        embeddings = self.encoder.encode_image(torch.cat([whole, patches]))
        embedding, patch_embeddings = embeddings.split([len(whole), len(patches)])
        regularizer = self._regularize(fused, visible, infrared)

        # Autocast would take the cosines, differences of nearly equal vectors, in 16 bits.
        with torch.autocast(fused.device.type, enabled=False):
            direction = self.fusion_model(embedding, visible_embedding, infrared_embedding)
            patch = functional.mean_over_patches(
                self.fusion_model(
                    patch_embeddings, visible_embedding[owner], infrared_embedding[owner]
                ),
                kept,
                self.patch_reduction,
            )
            similarity = functional.similarity_loss(
                embedding, visible_embedding, infrared_embedding
            )
            total = functional.total_loss(
                (direction, patch, similarity, regularizer),
                (
                    self.direction_weight,
                    self.patch_weight,
                    self.similarity_weight,
                    self.regularizer_weight,
                ),
            )
            kept_fraction = kept.float().mean(1)
            return FusionLossTerms(
                total=self._reduce(total),
                direction=self._reduce(direction),
                patch=self._reduce(patch),
                similarity=self._reduce(similarity),
                regularizer=self._reduce(regularizer),
                kept=kept_fraction if self.reduction == "none" else kept_fraction.mean(),
            )

    def extra_repr(self) -> str:
        names = (
            "direction_weight",
            "patch_weight",
            "similarity_weight",
            "regularizer_weight",
            "num_patches",
            "patch_scale",
            "min_patch_entropy",
            "patch_reduction",
            "data_range",
            "reduction",
        )
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _check_source_values_once(self, visible: Tensor, infrared: Tensor) -> None:
        if not self._source_values_checked:
            checks.check_source_values("visible", visible, self.data_range)
            checks.check_source_values("infrared", infrared, self.data_range)
            self._source_values_checked = True

    def _to_unit_range(self, images: Tensor) -> Tensor:
        low, high = self.data_range
        images = images.float()
        return images if (low, high) == (0.0, 1.0) else (images - low) / (high - low)

    @torch.no_grad()
    def _embed_sources(self, visible: Tensor, infrared: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the whole source images, (B, D) each, in one pass of the image tower."""
        channels = max(visible.shape[1], infrared.shape[1])
        sources = [
            functional.match_channels(
                functional.resize_images(images, self.encoder.image_size), channels
            )
            for images in (visible, infrared)
        ]
        visible_embedding, infrared_embedding = self.encoder.encode_image(torch.cat(sources)).chunk(
            2
        )
        return visible_embedding, infrared_embedding

    def _patches(
        self, fused: Tensor, visible: Tensor, infrared: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Random patches of `fused` that show something in both sources.

        Returns:
            The K kept patches (K, C, height, width) in the size that the encoder takes; which
            of all were kept (B, N); and the sample to which each kept one belongs (K,).
        """
        batch, device, size = len(fused), fused.device, self.encoder.image_size
        if self.patch_weight == 0:
            kept = torch.zeros(batch, self.num_patches, dtype=torch.bool, device=device)
            none = torch.zeros(0, dtype=torch.long, device=device)
            return fused.new_zeros(0, fused.shape[1], *size), kept, none

        # At this size the smallest patch still has a source pixel for each of its own.
        short_side = round(max(size) / self.patch_scale[0])
        fused = functional.shrink_images(fused, short_side)
        transforms = functional.random_patch_transforms(
            batch,
            self.num_patches,
            (fused.shape[2], fused.shape[3]),
            scale=self.patch_scale,
            generator=self.generator,
        ).to(device, non_blocking=True)
        patches = functional.sample_patches(fused, transforms, size).flatten(0, 1)
        if self.min_patch_entropy is None:
            kept = torch.ones(batch, self.num_patches, dtype=torch.bool, device=device)
            owner = torch.arange(batch, device=device).repeat_interleave(self.num_patches)
            return patches, kept, owner

        with torch.no_grad():
            grey = [functional.match_channels(images, 1) for images in (visible, infrared)]
            grey_patches = functional.sample_patches(
                functional.shrink_images(torch.cat(grey, 1), short_side), transforms, size
            )
            kept = (functional.patch_entropy(grey_patches) > self.min_patch_entropy).all(-1)
            # The one synchronisation of a step: the host must know how many patches to encode,
            # and encoding those alone saves far more than the wait costs.
            index = kept.flatten().nonzero().squeeze(1)
        return patches[index], kept, index // self.num_patches

    def _regularize(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
        if self.regularizer is None or self.regularizer_weight == 0:
            return fused.new_zeros(len(fused))
        losses = self.regularizer(fused, visible, infrared)
        checks.check_per_sample("regularizer", losses, len(fused))
        return losses.float()

    def _reduce(self, losses: Tensor) -> Tensor:
        if self.reduction == "mean":
            return losses.mean()
        return losses.sum() if self.reduction == "sum" else losses
