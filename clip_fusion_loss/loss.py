"""LanguageDrivenFusionLoss: check the images, embed them, compute the terms, reduce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from . import checks, functional, patches
from .encoder import FrozenCLIP
from .frozen import drop_traces
from .fusion_model import EmbeddedFusionModel
from .objective import FusionObjective
from .patch_history import PatchHistory
from .presets import Presets
from .source_images import SourceEmbeddings, TakesSources

__all__ = ["FusionLossTerms", "LanguageDrivenFusionLoss", "SourceEmbeddings"]


class FusionLossTerms(NamedTuple):
    """The total loss and its unweighted terms, float32.

    Each is a scalar, or of shape (B,) with ``reduction="none"``.
    """

    total: Tensor
    """The weighted sum, which `LanguageDrivenFusionLoss` returns."""
    direction: Tensor
    """Direction loss of the whole fused image, in [0, 2] per sample."""
    patch: Tensor
    """Direction loss of its patches, in [0, 2] per sample."""
    similarity: Tensor
    """Mean cosine distance to both sources, in [0, 2] per sample."""
    regularizer: Tensor
    """The regularizer's loss."""
    kept: Tensor
    """Fraction of patches that passed the entropy filter, in [0, 1]; with "sum" also the mean."""


class LanguageDrivenFusionLoss(Presets, TakesSources):
    """Language-driven loss: a text describes the fused image, and a frozen CLIP compares the two.

    Per sample, with the weights of the paper (arXiv 2402.16267):

        total =  2 * direction(v_f)                              # the whole fused image
              + 10 * mean_i m_i direction(v_patch_i)             # its random patches
              +  6 * (1 - (cos(v_f, v_v) + cos(v_f, v_r)) / 2)   # similarity to the sources
              + 10 * regularizer(fused, visible, infrared)

        direction(e) = 1 - (cos(e - v_v, t_f - t_v) + cos(e - v_r, t_f - t_r)) / 2

    v are the CLIP embeddings of the fused, visible and infrared image, t those of the texts, and
    m_i is 1 if patch i has a grey-level entropy above `min_patch_entropy` in both sources. The
    formulas are in `functional`. All defaults are the paper's, except that there is no regularizer;
    `paper()` adds it.

    Texts are embedded once, at construction and in `set_objective`. CLIP does not appear in
    `state_dict()` or `parameters()`. Options are attributes and may be assigned at any time, such
    as weights on a schedule; only `encoder` and `compile` are fixed at construction.

    Args:
        objective: a `FusionObjective`; or a text, or several, for `FusionObjective(fused=texts)`;
            or an `EmbeddedFusionModel` made with this encoder, which needs no text tower.
        encoder: the CLIP; None loads the paper's ViT-B/32 (`FrozenCLIP.from_pretrained()`).
        direction_weight: weight of the direction term, at least 0 (paper: 2).
        patch_weight: weight of the patch term, at least 0 (paper: 10). At 0 no patches are encoded.
        similarity_weight: weight of the similarity term, at least 0 (paper: 6).
        regularizer: a module called ``(fused, visible, infrared) -> (B,)`` on float32 images in
            [0, 1]; the paper's is `VGGMaxFeatureLoss()`. None: no such term.
        regularizer_weight: its weight, at least 0 (paper: 10). At 0 it is not called.
        num_patches: random patches per sample, at least 1 (paper: 32).
        patch_scale: range of a patch's side as a fraction of the image's short side, within
            [0.05, 1] (paper: 0.5 to 0.8).
        min_patch_entropy: patches must have more bits of grey-level entropy than this in both
            sources, 0 to 8 (paper: 6); None keeps all patches.
        patch_reduction: "all" averages over all patches and counts dropped ones as 0, as the
            paper's code does; "kept" averages over a sample's kept patches, 0 if there are none.
        data_range: (low, high), the values of black and white in the images, say (0, 255).
        reduction: "mean" or "sum" over the batch, or "none".
        generator: source of the random numbers for patches, such as
            ``torch.Generator().manual_seed(0)``; None uses torch's global CPU generator.
        patch_chunk: patches to encode and differentiate at a time. Memory grows with it, not with
            `num_patches`; value and gradient do not depend on it. "auto" is 64 on accelerators; on
            a CPU it is 6 at CLIP's usual input of 224 x 224 pixels, and up to 64 for smaller
            inputs. None takes all patches at once, which double backward needs
            (docs/performance.md).
        precision: of CLIP's arithmetic: "fp32", "bf16" or "fp16"; "auto" follows the surrounding
            `torch.autocast`, or without one the encoder's weights. Directions and cosines are
            always float32.
        compile: whether to compile the encoder's image tower with `torch.compile`.

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
            # Patches, whole images and sources have three fixed shapes.
            self.encoder.compile(dynamic=False)
        self.set_objective(objective)
        self._patch_history = PatchHistory()

    def state_dict(self, *, prefix: str = "", **options: Any) -> Any:
        """The state of a regularizer that has one; otherwise empty."""
        state = super().state_dict(prefix=prefix, **options)
        drop_traces(state, prefix)
        return state

    def forward(
        self,
        fused: Tensor,
        visible: Tensor,
        infrared: Tensor,
        *,
        sources: SourceEmbeddings | None = None,
        objectives: Sequence[str | FusionObjective] | EmbeddedFusionModel | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            fused: (B, 1 | 3, H, W), H and W at least 16. Values outside `data_range` are allowed:
                an untrained network may produce them, and clamping would stop their gradient.
            visible: (B, 1 | 3, H, W) in `data_range`, with the batch, height and width of `fused`;
                the number of channels may differ. Gets no gradient.
            infrared: like `visible`.
            sources: the result of `embed_sources` for the same `visible` and `infrared`, which are
                then not encoded again.
            objectives: one per image: B texts or `FusionObjective`s, as in `embed`; or B embedded
                ones, as returned by `embed(...)` or ``bank[names]``. None: the current objective
                for all images.

        Returns:
            A float32 scalar, or (B,) with ``reduction="none"``; differentiable in `fused`.

        Raises:
            TypeError, ValueError: shapes, dtypes, devices or objectives do not match (every call);
                sources have values that are not finite or outside `data_range` (only the first
                call, as reading values waits for the device; see `check_values`).

        Warns:
            UserWarning: the images of the first call suggest a mistake, such as swapped sources.
        """
        return self.terms(fused, visible, infrared, sources=sources, objectives=objectives).total

    # One graph break in a compiled training step: the number of encoded patches depends on the
    # images, so tracing would recompile for each number.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def terms(
        self,
        fused: Tensor,
        visible: Tensor,
        infrared: Tensor,
        *,
        sources: SourceEmbeddings | None = None,
        objectives: Sequence[str | FusionObjective] | EmbeddedFusionModel | None = None,
    ) -> FusionLossTerms:
        """Compute the loss and its unweighted terms, for logging.

        Arguments, errors and warnings are those of `forward`.

        Returns:
            A `FusionLossTerms`. `patch` and `kept` are 0 if `patch_weight` is 0, and `regularizer`
            is 0 if its weight is 0: they are not computed then.
        """
        images = {"fused": fused, "visible": visible, "infrared": infrared}
        checks.check_images(images, self.encoder.device)
        fusion_model = self._fusion_model_for(objectives, fused)
        self._check_source_values_once(visible, infrared, fused)
        if sources is None:
            sources = self._embed_sources(visible, infrared)
        else:
            checks.check_type("sources", sources, SourceEmbeddings)
            width = len(self.fusion_model.visible_direction)
            checks.check_embeddings("sources", sources, fused, width)
        fused, visible, infrared = (
            self._to_unit_range(image) for image in (fused, visible.detach(), infrared.detach())
        )

        def score(patches: Tensor, owners: Tensor) -> Tensor:
            embedding = self._encode(patches)
            with torch.autocast(patches.device.type, enabled=False):
                of_sources = (embeddings[owners] for embeddings in sources)
                return fusion_model(embedding, *of_sources, index=owners)

        # Patches first, before the activations of whole images take memory.
        patch, kept = self._patch_term(fused, visible, infrared, score)
        embedding = self._encode(fused)
        regularizer = self._regularize(fused, visible, infrared)
        # Autocast would compute cosines of differences of nearly equal vectors in 16 bits.
        with torch.autocast(fused.device.type, enabled=False):
            direction = fusion_model(embedding, *sources)
            similarity = functional.similarity_loss(embedding, *sources)
            parts = direction, patch, similarity, regularizer
            weights = (
                self.direction_weight,
                self.patch_weight,
                self.similarity_weight,
                self.regularizer_weight,
            )
            total = functional.total_loss(parts, weights)
            passed = kept.float().mean(1)
            return FusionLossTerms(
                total=self._reduce(total),
                direction=self._reduce(direction),
                patch=self._reduce(patch),
                similarity=self._reduce(similarity),
                regularizer=self._reduce(regularizer),
                kept=passed if self.reduction == "none" else passed.mean(),
            )

    def _patch_term(
        self,
        fused: Tensor,
        visible: Tensor,
        infrared: Tensor,
        score: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Patch loss (B,), and (B, N) True for kept patches."""
        if self.patch_weight == 0:
            return fused.new_zeros(len(fused)), fused.new_zeros(len(fused), self.num_patches).bool()
        sums, kept = patches.sum_over_kept_patches(
            fused,
            visible,
            infrared,
            score,
            count=self.num_patches,
            size=self.encoder.image_size,
            scale=self.patch_scale,
            min_entropy=self.min_patch_entropy,
            generator=self.generator,
            history=self._patch_history if self.training else None,
            chunk=self.patch_chunk,
            # A compiled tower would be recompiled for each number of patches.
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
