"""FrozenCLIP: any open_clip model in, unit vectors out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checks
from .building import building
from .folding import fold_batch_norm
from .frozen import FrozenModule, computes_in_float16
from .functional import match_channels, resize_images, soften_outliers
from .identity import fingerprint_of
from .layers import speed_up
from .loading import load_clip, load_embedded_clip
from .objective import as_texts
from .text_tower import TextTower, says_nothing

__all__ = ["PRECISIONS", "FrozenCLIP"]

# What CLIP was trained with where a model does not say (OpenAI's values, as in open_clip).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

PRECISIONS = ("auto", "fp32", "bf16", "fp16")

# Largest value of the gradient that enters a float16 tower: far from both ends of float16's range,
# 6e-5 and 65504, since it grows and shrinks on its way.
GRADIENT_PEAK = 64.0


class FrozenCLIP(FrozenModule):
    """A CLIP that turns images and texts into unit vectors and is never trained.

    The model is taken over: it is put into eval mode, its weights are frozen, and its image tower
    computes the same in a faster order, with batch norms folded into convolutions. It does not
    appear in the `state_dict()` or `parameters()` of whatever holds this module, is not reached by
    `.train()` or `.apply()`, and follows `.to()`, `.cuda()` and `.half()`. The text tower stays
    where it is, usually on the CPU: it runs once a prompt.

    Args:
        model: a model built by open_clip (`create_model`, or one of its classes).
        tokenizer: the tokenizer belonging to it (`open_clip.get_tokenizer`).
        name: what to call the model in messages and saved files.
        keep_text: False drops the text tower to free its memory, after its first use or when
            a loss is given its objective as vectors; only texts embedded by then can be used
            later.
        vocabulary: lower-case words that the model knows; others in a text, and symbols, are
            left out of it with a warning. None: every word is taken as known.

    Raises:
        TypeError: `model` has no image tower (`visual`) or no `encode_text`; `tokenizer` cannot be
            called; another argument is of another type.
        ValueError: `model` does not say the size of its input images.
    """

    _mean: Tensor
    _std: Tensor
    fingerprint: str

    @building()
    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[..., Tensor],
        *,
        name: str = "custom",
        keep_text: bool = True,
        vocabulary: Collection[str] | None = None,
    ) -> None:
        visual = getattr(model, "visual", None)
        if not isinstance(visual, nn.Module) or not hasattr(model, "encode_text"):
            raise TypeError(
                "`model` must be an open_clip model with an image tower `visual` and a method "
                f"`encode_text`, got {type(model).__name__}; build it with open_clip.create_model"
            )
        if not callable(tokenizer):
            raise TypeError(
                f"`tokenizer` must be callable, got {tokenizer!r}; take that of the model with "
                "open_clip.get_tokenizer(name)"
            )
        checks.check_type("name", name, str)
        checks.check_flag("keep_text", keep_text)
        if isinstance(vocabulary, str):
            raise TypeError(f"`vocabulary` must be a collection of words, got {vocabulary!r}")
        super().__init__(visual)
        self.name = name
        self.keep_text = bool(keep_text)
        self.vocabulary = None if vocabulary is None else frozenset(vocabulary)
        self.image_size, mean, std = _preprocessing(visual)
        self.register_buffer("_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(std).view(3, 1, 1), persistent=False)
        # Hidden like the image tower, and not moved with it.
        text = TextTower(model, tokenizer)
        self._text: TextTower | None = text
        # Of the weights as they came, also where an earlier FrozenCLIP has folded them.
        fingerprint = fingerprint_of(visual, text.model, self.image_size, mean, std)
        self.fingerprint = getattr(visual, "folded_from", fingerprint)
        probe = torch.empty(2, 3, *self.image_size, dtype=_compute_dtype(visual), device="meta")
        if fold_batch_norm(visual, probe):
            visual.folded_from = self.fingerprint  # type: ignore[assignment]
        speed_up(visual)
        self._text_embeddings: dict[str, Tensor] = {}

    @classmethod
    @building()
    def from_pretrained(
        cls,
        model_name: str = "ViT-B-32-quickgelu",
        pretrained: str | Path | None = "openai",
        *,
        cache_dir: str | Path | None = None,
        tokenizer: str | Path | None = None,
        device: str | torch.device = "cpu",
        keep_text: bool = True,
    ) -> FrozenCLIP:
        """Load a pretrained CLIP, as float32; the default is the paper's ViT-B/32.

        No code in a file is run. docs/encoders.md has a table of files and what to write.

        Args:
            model_name: one of `open_clip.list_models()` or of OpenAI's names (``ViT-B/32``); or a
                folder, ``local-dir:FOLDER``, or a repository, ``hf-hub:ORG/REPO``, of open_clip
                or of a transformers CLIPModel.
            pretrained: a tag of `open_clip.list_pretrained()`, or the path of a file with weights
                of that model: a state dict, a training checkpoint, OpenAI's TorchScript archive
                or a transformers CLIPModel. Folders and repositories bring their own.
            cache_dir: where downloads are kept; None is the hub's default.
            tokenizer: a folder with the tokenizer's files, for models whose tokenizer would come
                from the hub (SigLIP and others); None: CLIP's own or the hub's.
            device: where the image tower goes; the text tower stays on the CPU.
            keep_text: see the class.

        Raises:
            TypeError: an argument of another type.
            ValueError: unknown model or tag; a file that does not fit the model or is none; an
                activation (QuickGELU or GELU) other than the weights were trained with.
            FileNotFoundError: the file does not exist, or the weights or the tokenizer are
                neither in the cache nor within reach; the message says what to fetch and how to
                pass it.
            ImportError: the tokenizer needs transformers.
        """
        name, model, tokenize = load_clip(model_name, pretrained, cache_dir, tokenizer)
        return cls(model, tokenize, name=name, keep_text=keep_text).to(device)

    @classmethod
    @building()
    def tiny(cls) -> FrozenCLIP:
        """The CLIP that comes with the package, for demonstrations and continuous integration.

        It was trained from scratch on rendered scenes and crops of four pairs of the TNO Image
        Fusion Dataset, knows about a hundred words (others raise a warning) and is no substitute
        for a real CLIP in research. No network needed.

        Raises:
            ValueError: its files are damaged.
        """
        model, tokenizer, words = load_embedded_clip()
        return cls(model, tokenizer, name="tiny", vocabulary=words)

    @property
    def device(self) -> torch.device:
        """Where images are encoded."""
        return self._mean.device

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the image tower with `torch.compile`, whose arguments these are."""
        self.network.compile(*args, **kwargs)

    def encode_image(self, images: Tensor, *, precision: str = "auto") -> Tensor:
        """Embed images; differentiable with respect to them.

        They are squashed to the model's input size (bilinear, anti-aliased), repeated to three
        channels where grey, and normalised with the model's own mean and std.

        Args:
            images: (N, 1 | 3, H, W) floating point in [0, 1], any H and W, on this device.
            precision: of the network's arithmetic: "bf16", "fp16", or "fp32" for that of its
                weights; "auto" is the precision of the surrounding `torch.autocast`, or that
                of the weights.

        Returns:
            (N, D) float32 unit vectors.

        Raises:
            TypeError: not a floating point tensor.
            ValueError: wrong shape or device, or an unknown precision.
        """
        checks.check_image("images", images)
        checks.check_device("images", images, self.device, "encoder", "encoder")
        checks.check_choice("precision", precision, PRECISIONS)
        # Geometry and statistics in float32 whatever the network's precision is.
        images = match_channels(resize_images(images.float(), self.image_size), 3)
        network = self.network_on(images.device)
        with self._autocast(precision):
            if computes_in_float16(network, images.device):
                images = soften_outliers(images)
            images = (images - self._mean) / self._std
            features = network(images.to(_compute_dtype(network)))
        if isinstance(features, tuple):  # (pooled, tokens), as CoCa's tower returns
            features = features[0]
        half, features = features.dtype == torch.float16, features.float()
        if half and features.requires_grad:
            _rescale_gradient(images, features)
        return F.normalize(features, dim=-1)

    @building()
    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Embed texts. Each is computed once; later calls reuse its vector.

        Args:
            texts: a text or T texts.

        Returns:
            (T, D) float32 unit vectors on this device, without gradient.

        Raises:
            TypeError: neither a text nor a sequence of texts.
            ValueError: no text, an empty one, or one longer than the model can read.
            RuntimeError: new texts after the text tower was dropped.

        Warns:
            UserWarning: words or symbols outside the model's vocabulary, where that is known;
                they are left out.
        """
        texts = as_texts("texts", texts)
        new = [text for text in dict.fromkeys(texts) if text not in self._text_embeddings]
        if new:
            self._text_embeddings.update(zip(new, self._embed(new), strict=True))
        return torch.stack([self._text_embeddings[text] for text in texts]).to(self.device)

    def says_nothing(self, text: str) -> bool:
        """Whether the model knows no word of `text`, articles and prepositions aside."""
        return self.vocabulary is not None and says_nothing(text, self.vocabulary)

    def drop_text(self) -> None:
        """Free the text tower; texts embedded by now stay usable, others are a RuntimeError."""
        self._text = None

    def extra_repr(self) -> str:
        return f"name={self.name!r}, image_size={self.image_size}, device={self.device}"

    def _autocast(self, precision: str) -> AbstractContextManager[Any]:
        if precision == "auto":
            return nullcontext()
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def _embed(self, texts: list[str]) -> Tensor:
        if self._text is None:
            raise RuntimeError(
                f"the text tower of {self.name!r} was dropped "
                f"(keep_text=False), so these new texts cannot be embedded: {texts}; build the "
                "encoder with keep_text=True, or save an EmbeddedFusionModel where the tower "
                "is at hand and load it here"
            )
        embeddings = self._text.embed(texts, self.name, self.vocabulary)
        if not self.keep_text:
            self.drop_text()
        return embeddings


def _preprocessing(visual: nn.Module) -> tuple[tuple[int, int], Any, Any]:
    """Input size, mean and std of an image tower."""
    config: dict[str, Any] = getattr(visual, "preprocess_cfg", {})
    size = config.get("size", getattr(visual, "image_size", None))
    if size is None:
        raise ValueError(
            "`model.visual` must say its input size in `preprocess_cfg` or `image_size`, "
            "got neither; build the model with open_clip.create_model"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return (height, width), config.get("mean", CLIP_MEAN), config.get("std", CLIP_STD)


def _rescale_gradient(images: Tensor, features: Tensor) -> None:
    """Keep the gradient between `features` and `images` within the range of float16.

    Neither a loss scale of 65536 nor a loss that is nearly flat shall make it infinite or zero:
    it enters the tower with `GRADIENT_PEAK` as its largest value and leaves it as it should be.
    The factor is a power of two, so that nothing is rounded.
    """
    factors = []

    def enter(gradient: Tensor) -> Tensor:
        peak = gradient.detach().abs().max() / GRADIENT_PEAK
        # Not torch.ldexp, which multiplies by a power of two in torch's default dtype.
        factor = peak / torch.frexp(peak).mantissa
        factors.append(torch.where(peak > 0, factor, torch.ones_like(factor)))
        return gradient / factors[-1]

    def leave(gradient: Tensor) -> Tensor:
        return gradient * factors.pop()

    features.register_hook(enter)
    images.register_hook(leave)


def _compute_dtype(network: nn.Module) -> torch.dtype:
    # Mixed-precision towers keep 1-D to 3-D parameters in float32; the convolution that takes
    # the image has the precision that the image must have.
    parameters = list(network.parameters())
    return next((p.dtype for p in parameters if p.ndim == 4), parameters[0].dtype)
