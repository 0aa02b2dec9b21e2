"""LanguageDrivenFusionLoss: check the images, embed them, score the embeddings, reduce."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from . import checks, functional
from .encoder import PRECISIONS, FrozenCLIP
from .objective import (
    EmbeddedFusionModel,
    FusionObjective,
    Texts,
    Words,
    embed_all,
    embed_for_batch,
    embed_one,
)
from .patches import EmptySteps, PatchGeometry, patch_term
from .regularizers import AUTOFUSE_LAYERS, StructureLoss, VGGMaxFeatureLoss


class FusionLossTerms(NamedTuple):
    """The total loss and its unweighted terms, float32; scalars, or (B,) with ``reduction="none"``.

    `direction` and `patch` are the direction losses of the whole fused image and of its patches,
    all texts and opposites added up, `similarity` the mean cosine distance to the sources, each in
    [0, 2] with one text; `kept` is the fraction of patches that passed the entropy filter, averaged
    over the batch also with "sum".
    """

    total: Tensor
    direction: Tensor
    patch: Tensor
    similarity: Tensor
    regularizer: Tensor
    kept: Tensor


class SourceEmbeddings(NamedTuple):
    """(B, D) unit vectors of whole sources, from `LanguageDrivenFusionLoss.embed_sources`."""

    visible: Tensor
    infrared: Tensor


Objective = FusionObjective | EmbeddedFusionModel | str | Sequence[str] | Mapping[Any, float]
Objectives = Texts | Sequence[str | FusionObjective | None] | EmbeddedFusionModel

# What AutoFuse says of all images.
AUTOFUSE = FusionObjective(
    "high resolution, salient objects, rich details",
    opposite="low resolution, indistinct objects, minimal details",
    opposite_weight=1.0,
)


def _patch_chunk(name: str, value: Any) -> Any:
    if isinstance(value, str) and value == "auto":
        return "auto"
    return checks.check_number(name, value, minimum=1, whole=True)


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


# Each function checks an assigned value and returns what to keep: plain Python numbers and tuples.
OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "direction_weight": checks.check_number,
    "patch_weight": checks.check_number,
    "similarity_weight": checks.check_number,
    "regularizer": _or_none(partial(checks.check_type, kind=nn.Module)),
    "regularizer_weight": checks.check_number,
    "shared_weight": checks.check_number,
    "link": partial(checks.check_choice, choices=("linear", "exponential")),
    "num_patches": partial(checks.check_number, minimum=1, whole=True),
    "patch_geometry": partial(checks.check_type, kind=PatchGeometry),
    "min_patch_entropy": _or_none(partial(checks.check_number, maximum=8)),
    "patch_filter": partial(checks.check_choice, choices=("both", "each")),
    "patch_reduction": partial(checks.check_choice, choices=("all", "kept")),
    "region_share": partial(checks.check_number, minimum=0.51, maximum=1),
    "data_range": checks.check_interval,
    "reduction": partial(checks.check_choice, choices=("mean", "sum", "none")),
    "generator": _or_none(partial(checks.check_type, kind=torch.Generator)),
    "patch_chunk": _or_none(_patch_chunk),
    "precision": partial(checks.check_choice, choices=PRECISIONS),
}


class LanguageDrivenFusionLoss(nn.Module):
    """Language-driven loss: a text describes the fused image, and a frozen CLIP compares the two.

    Per sample, with the weights of the paper (arXiv 2402.16267):

        total =  2 * direction(v_f)                              # the whole fused image
              + 10 * mean_i m_i direction(v_patch_i)             # its random patches
              +  6 * (1 - (cos(v_f, v_v) + cos(v_f, v_r)) / 2)   # similarity to the sources
              + 10 * regularizer(fused, visible, infrared)

        direction(e) = 1 - (cos(e - v_v, t_f - t_v) + cos(e - v_r, t_f - t_r)) / 2

    v are the CLIP embeddings of the images, t those of the texts, and m_i is 1 if patch i has a
    grey-level entropy above `min_patch_entropy` in both sources; see `functional`. All defaults are
    the paper's, but for the regularizer, which `paper()` adds. Options are attributes and may be
    assigned at any time; only `encoder` and `compile` are fixed at construction.

    Args:
        objective: a `FusionObjective`; or a text, or several, for `FusionObjective(fused=texts)`;
            or a mapping of these to weights, as in `EmbeddedFusionModel.mix`; or an
            `EmbeddedFusionModel` made with this encoder, which needs no text tower.
        encoder: the CLIP; None loads the paper's ViT-B/32 (`FrozenCLIP.from_pretrained()`).
        direction_weight, patch_weight, similarity_weight, regularizer_weight: weights of the terms,
            at least 0 (paper: 2, 10, 6, 10). At 0 no patches are encoded, no regularizer is called.
        regularizer: a module called ``(fused, visible, infrared) -> (B,)`` on float32 images in
            [0, 1]; the paper's is `VGGMaxFeatureLoss()`. None: no such term.
        shared_weight: with `objectives`, the weight of the current objective, which counts for each
            image beside its own; at least 0. AutoFuse has 1.
        link: "linear", or AutoFuse's "exponential": ``exp(d) - 1`` for each direction loss d of an
            embedding from a text.
        num_patches: random patches per sample, at least 1 (paper: 32). With 2 the loss takes a
            tenth of the time; with the bundled CLIP no difference showed, others were not tried.
        patch_geometry: the size and the random transform of patches, a `PatchGeometry`.
        min_patch_entropy: patches must have more bits of grey-level entropy than this in the
            sources, 0 to 8 (paper: 6); None keeps all patches.
        patch_filter: "both" keeps patches that have it in both sources. AutoFuse's "each" leaves
            out the direction from a source that has not, and patches where neither has.
        patch_reduction: "all" counts dropped patches as 0, as the paper's code does; "kept"
            averages over a sample's kept patches, 0 if there are none.
        region_share: with `regions`, how much of a patch one label must cover, 0.51 to 1. At 0.85
            (own choice) a label gets patches from its border too, but hardly sees beyond it.
        data_range: (low, high), the values of black and white in the images, say (0, 255).
        reduction: "mean" or "sum" over the batch, or "none".
        generator: of the random patches; None uses torch's global CPU generator, as
            `torch.utils.checkpoint` requires. After `eval()` all images get the same patches.
        patch_chunk: patches to encode and differentiate at a time. Memory grows with it; value and
            gradient do not depend on it. "auto" is 64 on accelerators (for ViT-L pass 8), 6 or more
            on a CPU. None takes all at once, which double backward needs (docs/performance.md).
        precision: of CLIP's arithmetic: "fp32", "bf16", "fp16" or "auto", see
            `FrozenCLIP.encode_image`. Directions and cosines are always float32.
        compile: whether to compile the encoder's image tower with `torch.compile`.

    A wrong argument is a TypeError or a ValueError that says what to do. Example:

        criterion = LanguageDrivenFusionLoss.paper().to(device)
        loss = criterion(fused=network(visible, infrared), visible=visible, infrared=infrared)
        loss.backward()
    """

    encoder: FrozenCLIP
    fusion_model: EmbeddedFusionModel

    def __init__(
        self, objective: Objective = FusionObjective(), *, encoder: FrozenCLIP | None = None,
        direction_weight: float = 2.0, patch_weight: float = 10.0, similarity_weight: float = 6.0,
        regularizer: nn.Module | None = None, regularizer_weight: float = 10.0,
        shared_weight: float = 0.0, link: str = "linear",
        num_patches: int = 32, patch_geometry: PatchGeometry = PatchGeometry(),
        min_patch_entropy: float | None = 6.0, patch_filter: str = "both",
        patch_reduction: str = "all", region_share: float = 0.85,
        data_range: tuple[float, float] = (0.0, 1.0), reduction: str = "mean",
        generator: torch.Generator | None = None,
        patch_chunk: int | Literal["auto"] | None = "auto", precision: str = "auto",
        compile: bool = False, patch_scale: None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if patch_scale is not None:
            self.patch_scale = patch_scale  # raises; it had this name until 0.2.0
        checks.check_type("encoder", encoder, FrozenCLIP, optional=True)
        self._compiled = checks.check_type("compile", compile, bool)
        self.direction_weight = direction_weight
        self.patch_weight = patch_weight
        self.similarity_weight = similarity_weight
        self.regularizer = regularizer
        self.regularizer_weight = regularizer_weight
        self.shared_weight = shared_weight
        self.link = link
        self.num_patches = num_patches
        self.patch_geometry = patch_geometry
        self.min_patch_entropy = min_patch_entropy
        self.patch_filter = patch_filter
        self.patch_reduction = patch_reduction
        self.region_share = region_share
        self.data_range = data_range
        self.reduction = reduction
        self.generator = generator
        self.patch_chunk = patch_chunk
        self.precision = precision
        self.encoder = FrozenCLIP.from_pretrained() if encoder is None else encoder
        if self._compiled:
            # Patches, whole images and sources have three fixed shapes.
            self.encoder.compile(dynamic=False)
        self.fusion_model = embed_one(objective, self.encoder, FusionObjective())
        self._empty_steps = EmptySteps()

    @classmethod
    def paper(
        cls, objective: Objective = FusionObjective(), **options: Any
    ) -> LanguageDrivenFusionLoss:
        """The paper's loss: CLIP ViT-B/32, VGG-19 regularizer, weights 2 / 10 / 6 / 10.

        `options` are keyword arguments of the class. A FileNotFoundError names weights that are not
        in the cache and cannot be downloaded, and how to pass the file. `tiny` needs none.
        """
        loss = cls(objective, **options)  # which finds wrong options before it loads weights
        if "regularizer" not in options:
            loss.regularizer = VGGMaxFeatureLoss()
        return loss

    @classmethod
    def autofuse(cls, objective: Objective = AUTOFUSE, **options: Any) -> LanguageDrivenFusionLoss:
        """The authors' next loss, of their code for AutoFuse (docs/method.md has the equations).

        `objective` says what all images should be, and what not. What a single image should be is
        added to that: pass as `objectives` a ``FusionObjective(text, opposite=text,
        opposite_weight=1)`` for each image, or None where there is none. Errors are as in `paper`.
        """
        defaults: dict[str, Any] = {
            "patch_weight": 20.0,
            "similarity_weight": 0.0,
            "regularizer_weight": 17.0,
            "shared_weight": 1.0,
            "link": "exponential",
            "patch_geometry": PatchGeometry(  # 48 to 80 of 336 pixels
                (1 / 7, 5 / 21), rotation=3.0, shift=0.0, zoom=1.0, shear=3.0, vertical_shear=3.0
            ),
            "min_patch_entropy": 5.9,
            "patch_filter": "each",
        }
        loss = cls(objective, **(defaults | options))
        if "regularizer" not in options:
            loss.regularizer = VGGMaxFeatureLoss(layers=AUTOFUSE_LAYERS)
        return loss

    @classmethod
    def tiny(
        cls, objective: Objective = FusionObjective(), **options: Any
    ) -> LanguageDrivenFusionLoss:
        """The loss with the bundled CLIP and suitable weights, without a download.

        For demonstrations and continuous integration; see `FrozenCLIP.tiny`. The weights come from
        a search with this CLIP (docs/results.md); the paper's are too strong for it. To strengthen
        or weaken the text's effect, scale `direction_weight` and `patch_weight` together.
        `min_patch_entropy` is 5 bits, as few of the small crops that it is used with have more than
        6. `options` are keyword arguments of the class.
        """
        options["encoder"] = options.get("encoder") or FrozenCLIP.tiny()
        defaults: dict[str, Any] = {
            "direction_weight": 3.2,
            "patch_weight": 1.0,
            "similarity_weight": 3.0,
            "regularizer": StructureLoss(
                window=11, layout_weight=1.5, gradient_weight=5.0, above_noise=True
            ),
            "regularizer_weight": 4.0,
            "num_patches": 2,
            "min_patch_entropy": 5.0,
            "patch_reduction": "kept",
        }
        return cls(objective, **(defaults | options))

    def forward(
        self, *, fused: Tensor, visible: Tensor, infrared: Tensor,
        sources: SourceEmbeddings | None = None, objectives: Objectives | None = None,
        regions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Compute the loss. All arguments are passed by keyword, so that no role can be mixed up.

        Args:
            fused: (B, 1 | 3, H, W), H and W at least 16. Values outside `data_range` are allowed:
                an untrained network may produce them, and clamping would stop their gradient.
            visible, infrared: (B, 1 | 3, H, W) in `data_range`, with the batch, height and width of
                `fused`; channels and precision may differ. They get no gradient.
            sources: the result of `embed_sources` for these sources, which saves encoding them.
            objectives: one per image: B texts or `FusionObjective`s, as in `embed`, or None for the
                current one; or B embedded ones, from `embed(...)` or ``bank[names]``.
            regions: (B, H, W) integers, the label of each pixel. `objectives` are then a whole bank
                or N texts, and label n has objective n. A patch has that of the label that covers
                at least `region_share` of it, and without such a label it is left out; the
                direction term of a whole image is 0 if the image has several labels. Patches must
                be smaller than the regions; in a training most images should have one label.

        Returns a float32 scalar, or (B,) with ``reduction="none"``; differentiable in `fused`.
        Raises a TypeError or ValueError if shapes, dtypes, devices or objectives do not match; in
        the first call also if sources are not finite or outside `data_range` (see `check_values`).
        A label without an objective is found there, on a CPU always; later on an accelerator it is
        an error of the device, as reading labels would make the host wait.
        Warns if the images of the first call suggest a mistake, such as a visible image in YCrCb;
        or if too many steps of a training have no patch that passes the filter.
        """
        return self.terms(
            fused=fused, visible=visible, infrared=infrared, sources=sources,
            objectives=objectives, regions=regions,
        ).total  # fmt: skip

    # One graph break in a compiled training step: the number of encoded patches depends on the
    # images, so tracing would recompile for each number.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def terms(
        self, *, fused: Tensor, visible: Tensor, infrared: Tensor,
        sources: SourceEmbeddings | None = None, objectives: Objectives | None = None,
        regions: Tensor | None = None,
    ) -> FusionLossTerms:  # fmt: skip
        """Compute the loss and its unweighted terms; arguments, errors, warnings as in `forward`.

        `patch`, `kept` and `regularizer` are not computed, but 0, where their weight is 0.
        """
        images = {"fused": fused, "visible": visible, "infrared": infrared}
        checks.check_images(images, self.encoder.device)
        batch = len(fused) if regions is None else None
        fusion_model = embed_for_batch(objectives, batch, self.encoder, self.fusion_model)
        if regions is not None:
            first = not self._values_checked
            regions = checks.check_regions(regions, fused, len(fusion_model), read=first)
        self._check_values_once(fused, visible, infrared)
        if sources is None:
            sources = self._embed_sources(visible, infrared)
        else:
            self._check_sources(sources, fused)
        fused, visible, infrared = (
            self._to_unit_range(image) for image in (fused, visible.detach(), infrared.detach())
        )

        def direction_loss(*embeddings: Tensor, **options: Tensor | None) -> Tensor:
            loss = fusion_model(*embeddings, link=self.link, **options)
            if self.shared_weight > 0:
                shared = self.fusion_model(*embeddings, link=self.link, **options)
                loss = loss + self.shared_weight * shared
            return loss

        def score(patches: Tensor, owners: Tensor, rows: Tensor, counted: Tensor | None) -> Tensor:
            embedding = self._encode(patches)
            with torch.autocast(patches.device.type, enabled=False):
                of_sources = (embeddings[owners] for embeddings in sources)
                return direction_loss(embedding, *of_sources, index=rows, counted=counted)

        # Patches first, before the activations of whole images take memory.
        if self.patch_weight == 0:
            patch = fused.new_zeros(len(fused))
            kept = fused.new_zeros(len(fused), self.num_patches)
        else:
            # Padded, as a compiled tower would be recompiled for each number of patches.
            patch, kept = patch_term(
                fused, visible, infrared, regions, score, count=self.num_patches,
                size=self.encoder.image_size, geometry=self.patch_geometry,
                min_entropy=self.min_patch_entropy, each=self.patch_filter == "each",
                region_share=self.region_share, reduction=self.patch_reduction,
                generator=self.generator, chunk=self.patch_chunk, pad=self._compiled,
                empty_steps=self._empty_steps if self.training else None,
            )  # fmt: skip
        embedding = self._encode(fused)
        regularizer = self._regularize(fused, visible, infrared)
        # Autocast would compute cosines of differences of nearly equal vectors in 16 bits.
        with torch.autocast(fused.device.type, enabled=False):
            if regions is None:
                direction = direction_loss(embedding, *sources)
            else:
                labels = regions.flatten(1)
                direction = direction_loss(embedding, *sources, index=labels[:, 0])
                direction = direction * (labels == labels[:, :1]).all(1)
            similarity = functional.similarity_loss(embedding, *sources)
            parts = direction, patch, similarity, regularizer
            weights = (
                self.direction_weight, self.patch_weight,
                self.similarity_weight, self.regularizer_weight,
            )  # fmt: skip
            total = functional.total_loss(parts, weights)
            passed = kept.float().mean(1)
            passed = passed if self.reduction == "none" else passed.mean()
            return FusionLossTerms._make([*map(self._reduce, (total, *parts)), passed])

    def _regularize(self, fused: Tensor, visible: Tensor, infrared: Tensor) -> Tensor:
        if self.regularizer is None or self.regularizer_weight == 0:
            return fused.new_zeros(len(fused))
        losses = self.regularizer(fused, visible, infrared)
        shape = tuple(getattr(losses, "shape", ("none",)))
        if shape != (len(fused),):
            raise ValueError(
                f"`regularizer` must return one loss per sample, shape ({len(fused)},), got shape "
                f"{shape}; reduce over channels and pixels, not over the batch"
            )
        return losses.float()

    def _reduce(self, losses: Tensor) -> Tensor:
        if self.reduction == "mean":
            return losses.mean()
        return losses.sum() if self.reduction == "sum" else losses

    @torch.inference_mode(False)
    def embed_sources(self, visible: Tensor, infrared: Tensor) -> SourceEmbeddings:
        """Embed whole sources once, as `sources` of several calls; errors as in `forward`."""
        checks.check_images({"visible": visible, "infrared": infrared}, self.encoder.device)
        self._check_values_once(None, visible, infrared)
        return self._embed_sources(visible, infrared)

    def check_values(self, *, fused: Tensor, visible: Tensor, infrared: Tensor) -> None:
        """Check values, as `forward` does in its first call; also those of `fused`.

        A ValueError if `fused` is not finite or leaves the range by more than its width. It waits
        for the device, so do not call it in every step.
        """
        images = {"fused": fused, "visible": visible, "infrared": infrared}
        checks.check_images(images, self.encoder.device)
        checks.check_values(images, self.data_range)
        checks.warn_of_mistakes(fused, visible, infrared, self.data_range)
        self._values_checked = True

    def _check_values_once(self, fused: Tensor | None, visible: Tensor, infrared: Tensor) -> None:
        if not self._values_checked:
            checks.check_values({"visible": visible, "infrared": infrared}, self.data_range)
            self._values_checked = True
            checks.warn_of_mistakes(fused, visible, infrared, self.data_range)

    def _check_sources(self, sources: Any, fused: Tensor) -> None:
        checks.check_type("sources", sources, SourceEmbeddings)
        wanted = len(fused), self.fusion_model.visible_direction.shape[-1]
        for embedding in sources:
            if embedding.shape != wanted or embedding.device != fused.device:
                raise ValueError(
                    f"`sources` must be embeddings of shape {wanted} on {fused.device}, got "
                    f"{tuple(embedding.shape)} on {embedding.device}; embed this batch"
                )

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

    @property
    def objective(self) -> Words:
        """The current texts, of a mixture with their weights. Assigning calls `set_objective`."""
        return self.fusion_model.objective

    def set_objective(self, objective: Objective) -> None:
        """Replace the objective, unless that is an error; a text keeps the texts of the sources."""
        self.fusion_model = embed_one(objective, self.encoder, self.objective)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def embed(self, objectives: Texts | Mapping[str, str | FusionObjective]) -> EmbeddedFusionModel:
        """Embed several objectives: one per image of a batch, or a bank to choose from.

        `objectives` are N texts or `FusionObjective`s, or a mapping of names to them; for a text
        the sources have those of the current objective. Errors are those of `EmbeddedFusionModel`.
        """
        return embed_all(objectives, self.encoder, self.objective)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OPTIONS:
            value = OPTIONS[name](name, value)
            if name == "data_range":
                self._values_checked = False  # the check used the old range
        elif name == "objective":  # nn.Module would take an EmbeddedFusionModel for a child
            self.set_objective(value)
            return
        elif name == "encoder" and "fusion_model" in self._modules:
            # Another encoder would not fit the texts.
            self.fusion_model.check_encoder(checks.check_type("encoder", value, FrozenCLIP))
        elif name == "patch_scale":
            new = "`patch_geometry`, as PatchGeometry(scale=(low, high))"
            raise TypeError(f"`patch_scale` must be set in {new}, got {value!r}")
        elif name == "compile":
            raise TypeError(f"`compile` must be set at construction, got {value!r} assigned later")
        elif not name.startswith("_") and not hasattr(self, name):
            close = difflib.get_close_matches(name, OPTIONS, n=1, cutoff=0.8)
            if close:
                raise AttributeError(f"the loss has no option `{name}`; did you mean `{close[0]}`?")
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        names = [name for name in OPTIONS if name not in ("regularizer", "generator")]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
