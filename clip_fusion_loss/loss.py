"""LanguageDrivenFusionLoss: check, embed, score, reduce."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from . import checks, functional, mistakes, patches
from .building import building
from .encoder import FrozenCLIP
from .frozen import drop_traces
from .fusion_model import EmbeddedFusionModel
from .objective import FusionObjective
from .options import OPTIONS
from .patch_history import PatchHistory
from .presets import with_the_papers_networks
from .regularizers import StructureLoss

__all__ = ["FusionLossTerms", "LanguageDrivenFusionLoss", "SourceEmbeddings"]


class SourceEmbeddings(NamedTuple):
    """Embeddings of the whole source images, made by `LanguageDrivenFusionLoss.embed_sources`."""

    visible: Tensor
    """(B, D) float32 unit vectors."""
    infrared: Tensor
    """(B, D) float32 unit vectors."""


class FusionLossTerms(NamedTuple):
    """The parts of the loss, unweighted, each () or, with ``reduction="none"``, (B,)."""

    total: Tensor
    """The weighted sum, which `LanguageDrivenFusionLoss` returns."""
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

    Per sample, with the paper's defaults (arXiv 2402.16267), its regularizer apart:

        total =  2 * direction(v_f)                              # the whole fused image
              + 10 * mean_i m_i direction(v_patch_i)             # its random patches
              +  6 * (1 - (cos(v_f, v_v) + cos(v_f, v_r)) / 2)   # stay with the sources
              + 10 * regularizer(fused, visible, infrared)

        direction(e) = 1 - (cos(e - v_v, t_f - t_v) + cos(e - v_r, t_f - t_r)) / 2

    where v are CLIP's vectors of the fused, visible and infrared image, t those of the texts,
    and m_i is 1 if the patch has grey-level entropy above `min_patch_entropy` in both sources.
    `functional` holds the formulas.

    The texts are embedded once, here and in `set_objective`. Nothing of CLIP appears in
    `state_dict()` or `parameters()`. Options are attributes and may be assigned at any time, as
    weights on a schedule are; only `encoder` and `compile` are settled at construction.

    Args:
        objective: the texts; or a text or several, for `FusionObjective(fused=texts)`; or an
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
            does; "kept" averages over a sample's kept ones, and reads 0 where it has none.
        data_range: (low, high) of the images that come in.
        reduction: over the batch: "mean", "sum" or "none".
        generator: source of the patches' random numbers, say
            ``torch.Generator().manual_seed(0)``; None is torch's global CPU generator.
        patch_chunk: patches to encode and differentiate at a time. Memory grows with it and not
            with `num_patches`; the value and gradient do not depend on it. "auto" is 64, on a
            CPU as many as have the pixels of 6 at 224 px, but 6 to 64; None takes all at once,
            as double backward needs (docs/performance.md says how).
        precision: of CLIP's arithmetic: "fp32", "bf16" or "fp16"; "auto" follows the surrounding
            `torch.autocast`, or else the encoder's weights. Directions and cosines are float32
            in any case.
        compile: compile the encoder's image tower with `torch.compile`.

    Raises:
        TypeError, ValueError: an argument is not as described; the message says what to do.
        FileNotFoundError: with ``encoder=None``, see `FrozenCLIP.from_pretrained`.

    Example:

        criterion = LanguageDrivenFusionLoss.paper().to(device)
        loss = criterion(fused=network(visible, infrared), visible=visible, infrared=infrared)
        loss.backward()
    """

    def __init__(
        self,
        objective: FusionObjective | EmbeddedFusionModel | str | Sequence[str] = FusionObjective(),
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
        patch_chunk: int | Literal["auto"] | None = "auto",
        precision: str = "auto",
        compile: bool = False,
    ) -> None:
        super().__init__()
        checks.check_type("encoder", encoder, FrozenCLIP, optional=True)
        self.direction_weight = direction_weight
        self.patch_weight = patch_weight
        self.similarity_weight = similarity_weight
        self.regularizer = regularizer
        self.regularizer_weight = regularizer_weight
        self.num_patches = num_patches
        self.patch_scale = patch_scale
        self.min_patch_entropy = min_patch_entropy
        self.patch_reduction = patch_reduction
        self.data_range = data_range
        self.reduction = reduction
        self.generator = generator
        self.patch_chunk = patch_chunk
        self.precision = precision
        self.compile_encoder = checks.check_flag("compile", compile)
        self.encoder = FrozenCLIP.from_pretrained() if encoder is None else encoder
        if self.compile_encoder:
            # Patches come in one shape, whole images in another, sources in a third.
            self.encoder.compile(dynamic=False)
        self.set_objective(objective)
        self._source_values_checked = False
        self._patch_history = PatchHistory()

    @classmethod
    def paper(
        cls,
        objective: FusionObjective | EmbeddedFusionModel | str | Sequence[str] = FusionObjective(),
        **options: Any,
    ) -> LanguageDrivenFusionLoss:
        """The paper's loss: CLIP ViT-B/32, VGG-19 regularizer, weights 2 / 10 / 6 / 10.

        Args:
            objective: see the class.
            options: any keyword of the class, to depart from the paper in just that.

        Raises:
            FileNotFoundError: weights that are neither in the caches nor within reach.
        """
        # A misspelt option shall not come to light after a download.
        inspect.signature(cls).bind(objective, **options)
        return cls(objective, **with_the_papers_networks(options))

    @classmethod
    def tiny(
        cls,
        objective: FusionObjective | EmbeddedFusionModel | str | Sequence[str] = FusionObjective(),
        **options: Any,
    ) -> LanguageDrivenFusionLoss:
        """The loss with the embedded CLIP and weights that suit it: no download, no network.

        For demonstrations and continuous integration; see `FrozenCLIP.tiny`. The regularizer is a
        `StructureLoss`, which leaves brightness and contrast to the sentence. For more or less
        language, turn `direction_weight` and `patch_weight` up or down together. The weights come
        from a search with DenseFuse and this very model (docs/results.md): it has its own scale,
        and the paper's weights over-drive it. On its small crops 5 bits of entropy keep most
        patches, 6 few.

        Args:
            objective: see the class.
            options: any keyword of the class.
        """
        if "encoder" not in options:
            options["encoder"] = FrozenCLIP.tiny()
        defaults: dict[str, Any] = {
            "direction_weight": 3.2,
            "patch_weight": 1.0,
            "similarity_weight": 5.0,
            "regularizer": StructureLoss(window=11, flat_energy=0.12, layout_weight=2.0),
            "regularizer_weight": 2.4,
            "num_patches": 4,
            "min_patch_entropy": 5.0,
            "patch_reduction": "kept",
        }
        return cls(objective, **(defaults | options))

    @property
    def objective(self) -> FusionObjective:
        """The texts in force; assigning is `set_objective`."""
        return self.fusion_model.objective

    @objective.setter
    def objective(
        self, objective: FusionObjective | EmbeddedFusionModel | str | Sequence[str]
    ) -> None:
        self.set_objective(objective)

    @building()
    def set_objective(
        self, objective: FusionObjective | EmbeddedFusionModel | str | Sequence[str]
    ) -> None:
        """Swap the objective, at any time; the next call uses it.

        Vectors of texts that this encoder has seen before are reused. On an error the old
        objective stays.

        Args:
            objective: as in the class. A plain text, or several, are those for the fused image;
                those of the modalities stay as they are.

        Raises:
            TypeError, ValueError: see `FusionObjective` and `EmbeddedFusionModel`.
            RuntimeError: new texts, but the encoder's text tower was dropped.
        """
        if isinstance(objective, Sequence):
            settled = "fusion_model" in self._modules
            before = self.objective if settled else FusionObjective()
            objective = replace(before, fused=objective)
        if isinstance(objective, FusionObjective):
            fusion_model = EmbeddedFusionModel(objective, self.encoder)
        elif isinstance(objective, EmbeddedFusionModel):
            objective.check_encoder(self.encoder)
            fusion_model = copy.deepcopy(objective)  # it may serve other losses elsewhere
            if not self.encoder.keep_text:
                self.encoder.drop_text()
        else:
            raise TypeError(
                "`objective` must be a text, a FusionObjective or an EmbeddedFusionModel, got "
                f"{checks.shown(objective)}; {_objective_remedy(objective)}"
            )
        self.fusion_model = fusion_model.to(self.encoder.device)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OPTIONS:
            value = OPTIONS[name](name, value)
        if name == "compile":
            raise TypeError(
                f"`compile` is settled at construction, got an assignment of {value!r}; build the "
                "loss anew with compile=True"
            )
        if name == "encoder" and "fusion_model" in self._modules:
            # Replicas of DataParallel are assigned copies of it; another would not fit the texts.
            checks.check_type("encoder", value, FrozenCLIP)
            self.fusion_model.check_encoder(value)
        if name == "data_range":
            self._source_values_checked = False  # what was seen was seen under the old one
        super().__setattr__(name, value)

    def state_dict(self, *, prefix: str = "", **options: Any) -> Any:
        """What a regularizer of your own has to save; otherwise nothing at all."""
        state = super().state_dict(prefix=prefix, **options)
        drop_traces(state, prefix)
        return state

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

    def forward(
        self,
        fused: Tensor,
        visible: Tensor,
        infrared: Tensor,
        *,
        sources: SourceEmbeddings | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            fused: (B, 1 | 3, H, W), H and W at least 16. Values outside `data_range` are let
                pass: an untrained network may produce them, and clamping kills its gradient.
            visible: like `fused` in batch, height and width, with 1 or 3 channels of its own,
                in `data_range`. Carries no gradient.
            infrared: like `visible`.
            sources: what `embed_sources` returned for these very `visible` and `infrared`, to
                save encoding them again.

        Returns:
            () float32, or (B,) with ``reduction="none"``; differentiable in `fused`.

        Raises:
            TypeError, ValueError: shapes, dtypes or devices that do not go together (every
                call); sources outside `data_range` or NaN (first call only, since looking
                costs a synchronisation with the device; see `check_values`).

        Warns:
            UserWarning: on the first call, of `mistakes` that raise no error, say swapped roles.
        """
        return self.terms(fused, visible, infrared, sources=sources).total

    # One clean graph break in a compiled training step: what is encoded depends on the images, so
    # tracing this would compile anew for each number of patches.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def terms(
        self,
        fused: Tensor,
        visible: Tensor,
        infrared: Tensor,
        *,
        sources: SourceEmbeddings | None = None,
    ) -> FusionLossTerms:
        """The loss and its unweighted parts, for logging; arguments as in `forward`.

        The patch and regularizer terms read 0 where their weight is 0: they are not computed.
        """
        images = {"fused": fused, "visible": visible, "infrared": infrared}
        checks.check_images(images, self.encoder.device)
        self._check_source_values_once(visible, infrared, fused)
        if sources is None:
            sources = self._embed_sources(visible, infrared)
        else:
            checks.check_type("sources", sources, SourceEmbeddings)
            checks.check_embeddings("sources", sources, fused)
        fused, visible, infrared = (
            self._to_unit_range(image) for image in (fused, visible.detach(), infrared.detach())
        )
        # Patches first: what whole images leave for the backward pass is not there yet.
        patch, kept = self._patch_term(fused, visible, infrared, sources)
        embedding = self._encode(fused)
        regularizer = self._regularize(fused, visible, infrared)
        # Autocast would take the cosines, of differences of nearly equal vectors, in 16 bits.
        with torch.autocast(fused.device.type, enabled=False):
            direction = self.fusion_model(embedding, *sources)
            similarity = functional.similarity_loss(embedding, *sources)
            parts = direction, patch, similarity, regularizer
            weights = (
                self.direction_weight,
                self.patch_weight,
                self.similarity_weight,
                self.regularizer_weight,
            )
            total = functional.total_loss(parts, weights)
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
        names = [name for name in OPTIONS if name not in ("regularizer", "generator")]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

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
        images = [
            functional.match_channels(
                functional.resize_images(self._to_unit_range(source), self.encoder.image_size),
                channels,
            )
            for source in (visible, infrared)
        ]
        # Both in one pass of the image tower.
        return SourceEmbeddings(*self._encode(torch.cat(images)).chunk(2))

    def _patch_term(
        self, fused: Tensor, visible: Tensor, infrared: Tensor, sources: SourceEmbeddings
    ) -> tuple[Tensor, Tensor]:
        """Patch loss (B,), and which patches were kept (B, N)."""
        device, size, count = fused.device, self.encoder.image_size, self.num_patches
        if self.patch_weight == 0:
            kept = torch.zeros(len(fused), count, dtype=torch.bool, device=device)
            return fused.new_zeros(len(fused)), kept

        # At this size the smallest patch still has a source pixel for each of its own.
        short_side = round(max(size) / self.patch_scale[0])
        fused, visible, infrared = (
            functional.shrink_images(images, short_side) for images in (fused, visible, infrared)
        )
        transforms = patches.draw_patches(
            fused,
            count,
            scale=self.patch_scale,
            generator=self.generator,
            training=self.training,
        )
        if self.training:
            self._patch_history.check_draw(transforms)
        transforms = transforms.to(device, non_blocking=True)
        kept, index = patches.choose_patches(
            visible, infrared, transforms, size, min_entropy=self.min_patch_entropy
        )
        if self.training and self.min_patch_entropy is not None:
            self._patch_history.count(len(index), self.min_patch_entropy)

        def score(images: Tensor, owners: Tensor) -> Tensor:
            embedding = self._encode(images)
            with torch.autocast(device.type, enabled=False):
                return self.fusion_model(
                    embedding, sources.visible[owners], sources.infrared[owners]
                )

        chunk = self.patch_chunk
        if chunk == "auto":
            chunk = patches.default_chunk(device, size)
        sums = patches.sum_over_patches(
            fused,
            transforms,
            index,
            size,
            score,
            chunk=chunk,
            # A compiled tower would be compiled anew for each number of patches.
            pad=self.compile_encoder,
        )
        return functional.mean_over_patches(sums, kept, self.patch_reduction), kept

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


def _objective_remedy(objective: object) -> str:
    if isinstance(objective, os.PathLike):
        return "a saved one is EmbeddedFusionModel.load(path)"
    if isinstance(objective, Mapping):
        return "texts by role are FusionObjective(**texts)"
    return "several texts are a list"
