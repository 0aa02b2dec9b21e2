"""FrozenCLIP: images and texts to unit vectors, and which CLIP it is."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checks
from .frozen import FrozenModule, computes_in_float16, default_torch_state
from .functional import match_channels, resize_images, soften_outliers
from .loading import load_bundled_clip, load_clip
from .towers import fold_batch_norms, speed_up

# Used where a model does not name its own: OpenAI's values, as in open_clip.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

PRECISIONS = ("auto", "fp32", "bf16", "fp16")

# Largest gradient that enters a float16 tower, far from both ends of its range, 6e-5 and 65504.
GRADIENT_PEAK = 64.0

# Words, numbers and runs of symbols such as emoji, but not ordinary punctuation.
WORDS = re.compile(r"[^\W\d_]+|\d+|(?:[^\w\s.,;:!?'\"()\u2018\u2019\u201c\u201d-]|_)+")
# Marks around words, which the bundled CLIP would take for a part of the description.
MARKS = re.compile("[\"'()\u2018\u2019\u201c\u201d-]")

# A CLIP hardly heeds these (Yuksekgonul et al., ICLR 2023): the bundled one takes "an image without
# fog" for a foggy one.
NEGATION = re.compile(r"\b(no|not|without)\b", re.IGNORECASE)

# Words without a meaning of their own.
FUNCTION_WORDS = frozenset(("a", "an", "and", "at", "in", "of", "on", "or", "the", "to", "with"))


class FrozenCLIP(FrozenModule):
    """A frozen CLIP that embeds images and texts as unit vectors.

    `model` is changed in place: it is frozen, and its image tower gets faster layers with the same
    results (`towers`). The image tower follows `.to()` and casts, but is hidden from everything
    else (`FrozenModule`). The text tower stays where it is, as it runs once per text.

    Args:
        model: a model built by open_clip (`create_model`, or one of its classes).
        tokenizer: the tokenizer of that model (`open_clip.get_tokenizer`).
        name: the model's name in messages and saved files.
        keep_text: False frees the text tower after its first use, or when a loss gets an embedded
            objective. Then only texts that are already embedded can be used.
        vocabulary: lower-case words that the model knows; others are left out of texts, with a
            warning. None keeps all words.

    A `model` that is no CLIP of open_clip is a TypeError, one without input size a ValueError.
    `network` is the image tower, `image_size` the (height, width) of its input, and `fingerprint`
    identifies the CLIP.
    """

    frozen = ("network", "_mean", "_std")

    network: nn.Module
    _mean: Tensor
    _std: Tensor

    @default_torch_state()
    def __init__(
        self, model: nn.Module, tokenizer: Callable[..., Tensor], *, name: str = "custom",
        keep_text: bool = True, vocabulary: Collection[str] | None = None,
    ) -> None:  # fmt: skip
        visual = getattr(model, "visual", None)
        if not isinstance(visual, nn.Module) or not hasattr(model, "encode_text"):
            raise TypeError(
                "`model` must be an open_clip model with an image tower `visual` and a method "
                f"`encode_text`, got {type(model).__name__}; build it with open_clip.create_model"
            )
        if any(weight.is_meta for weight in model.parameters()):
            raise ValueError("`model` must have weights, got some on the meta device; load them")
        super().__init__()
        self.name = checks.check_type("name", name, str)
        self.keep_text = checks.check_type("keep_text", keep_text, bool)
        self.vocabulary = None if vocabulary is None else frozenset(vocabulary)
        self.network = visual
        self.image_size, mean, std = _preprocessing(visual)
        self._mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1)
        self._tokenizer = tokenizer
        # In a list, as it is not moved, cast or saved with the image tower. None once dropped.
        text = copy.copy(model)
        text._modules = {name: part for name, part in model._modules.items() if name != "visual"}
        self._text: list[Any] | None = [text.eval().requires_grad_(False)]
        self._text_embeddings: dict[str, Tensor] = {}
        # The fingerprint of the original weights, also if an earlier FrozenCLIP has folded them.
        fingerprint = _fingerprint(visual, self._text[0], self.image_size, mean, std)
        self.fingerprint: str = getattr(visual, "folded_from", fingerprint)
        if fold_batch_norms(visual):
            visual.folded_from = self.fingerprint  # type: ignore[assignment]
        speed_up(visual)

    @classmethod
    @default_torch_state()
    def from_pretrained(
        cls, model_name: str = "ViT-B-32-quickgelu", pretrained: str | Path | None = "openai", *,
        cache_dir: str | Path | None = None, device: str | torch.device = "cpu",
        keep_text: bool = True,
    ) -> FrozenCLIP:  # fmt: skip
        """Load a pretrained CLIP as float32; the default is the paper's ViT-B/32.

        Code in files is never run. docs/encoders.md lists the kinds of files and how to load each.

        Args:
            model_name: one of `open_clip.list_models()` or of OpenAI's names (``ViT-B/32``); or a
                folder, ``local-dir:FOLDER``, or a repository, ``hf-hub:ORG/REPO``, of open_clip
                or of a transformers CLIPModel.
            pretrained: a tag of `open_clip.list_pretrained()`, or a file with weights of that
                model; not used for folders and repositories.
            cache_dir: folder for downloads; None is the default of the Hugging Face hub.
            device: device of the image tower; the text tower stays on the CPU.
            keep_text: see the class.

        Raises:
            TypeError, ValueError: the model or tag is unknown; the file has no weights, or not
                those of the model; they were trained with another activation.
            FileNotFoundError: no such file, or no download; it says which file to fetch.
        """
        name, model, tokenize = load_clip(model_name, pretrained, cache_dir)
        return cls(model, tokenize, name=name, keep_text=keep_text).to(device)

    @classmethod
    @default_torch_state()
    def tiny(cls) -> FrozenCLIP:
        """Load the bundled CLIP, for demonstrations and continuous integration.

        It was trained on rendered scenes and on crops of four pairs of the TNO Image Fusion
        Dataset, knows about a hundred words, and does not replace a real CLIP in research.
        """
        model, tokenizer, words = load_bundled_clip()
        return cls(model, tokenizer, name="tiny", vocabulary=words)

    @property
    def device(self) -> torch.device:
        """The device of the image tower."""
        return self._mean.device

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the image tower; the arguments are those of `torch.compile`."""
        self.network.compile(*args, **kwargs)

    def encode_image(self, images: Tensor, *, precision: str = "auto") -> Tensor:
        """Embed (N, 1 | 3, H, W) images in [0, 1] as (N, D) float32 unit vectors; differentiable.

        Images are resized to the model's input size (bilinear, anti-aliased, aspect ratio not kept)
        and normalised with its mean and std. `precision` is "bf16", "fp16", or "fp32" for that of
        the weights; "auto" follows the surrounding `torch.autocast`, or else the weights. Wrong
        images are a TypeError or a ValueError.
        """
        checks.check_image("images", images)
        checks.check_device("images", images, self.device, "encoder", "encoder")
        checks.check_choice("precision", precision, PRECISIONS)
        # Resizing and normalisation in float32, whatever the network's precision is.
        images = match_channels(resize_images(images.float(), self.image_size), 3)
        with self._autocast(precision):
            if computes_in_float16(self.network, images.device):
                images = soften_outliers(images)
            images = (images - self._mean) / self._std
            features = self.network(images.to(_compute_dtype(self.network)))
        if isinstance(features, tuple):  # (pooled, tokens), as CoCa's tower returns
            features = features[0]
        half, features = features.dtype == torch.float16, features.float()
        if half and features.requires_grad:
            _rescale_gradient(images, features)
        return F.normalize(features, dim=-1)

    def _autocast(self, precision: str) -> AbstractContextManager[Any]:
        if precision == "auto":
            return nullcontext()
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    @default_torch_state()
    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Embed a text or T texts as (T, D) float32 unit vectors on `device`, each of them once.

        Raises:
            TypeError, ValueError: a text is none, empty, too long, or the name of a file.
            RuntimeError: a text is new and the text tower was dropped.
        """
        return self._on_host(checks.check_texts("texts", texts)).to(self.device)

    def _on_host(self, texts: Sequence[str]) -> Tensor:
        """`encode_text` on the CPU, where vectors can be read without waiting for a device."""
        new = [text for text in dict.fromkeys(texts) if text not in self._text_embeddings]
        if new:
            self._text_embeddings.update(zip(new, self._embed(new), strict=True))
        return torch.stack([self._text_embeddings[text] for text in texts])

    def _embed(self, texts: list[str]) -> Tensor:
        """(T, D) float32 unit vectors on the CPU."""
        if self._text is None:
            raise RuntimeError(
                f"the text tower of {self.name!r} was dropped (keep_text=False), so it cannot "
                f"embed {texts}; pass keep_text=True, or load a saved EmbeddedFusionModel"
            )
        (tower,) = self._text
        negated = [text for text in texts if NEGATION.search(text)]
        if negated:
            checks.warn(
                f"CLIP hardly heeds 'no', 'not' and 'without', got {checks.shorten(negated[0])}; "
                "say what the image should be, or what not as FusionObjective(opposite=...)"
            )
        tokens = self._tokenize(texts).to(next(tower.parameters()).device)
        with torch.autocast(tokens.device.type, enabled=False):
            embeddings = F.normalize(tower.encode_text(tokens).float(), dim=-1).cpu()
        if not self.keep_text:
            self.drop_text()
        return embeddings

    def _tokenize(self, texts: list[str]) -> Tensor:
        """Tokens of `texts`; raises a ValueError for texts that open_clip would truncate."""
        if self.vocabulary is not None:
            texts = _known_words(texts, self.name, self.vocabulary)
        tokens = self._tokenizer(texts)
        length = tokens.shape[1]
        whole = self._tokenizer(texts, context_length=4 * length)[:, :length]
        for text, cut in zip(texts, (whole != tokens).any(1).tolist(), strict=True):
            if cut:
                raise ValueError(
                    f"a text must have at most {length} tokens, start and end included, "
                    f"got {checks.shorten(text)}; shorten it, or split it into several texts"
                )
        return tokens

    def has_no_known_word(self, text: str) -> bool:
        """Whether no word of `text` is in the model's vocabulary, apart from function words."""
        if self.vocabulary is None:
            return False
        return not (self.vocabulary - FUNCTION_WORDS) & set(WORDS.findall(text.lower()))

    def drop_text(self) -> None:
        """Free the text tower. Texts that are already embedded stay usable; new ones raise."""
        self._text = None

    def extra_repr(self) -> str:
        return f"{self.name!r}, image_size={self.image_size}, device={str(self.device)!r}"


def _known_words(texts: list[str], name: str, vocabulary: frozenset[str]) -> list[str]:
    """The texts with a space for everything that is not in `vocabulary`; warns of that."""
    unknown = sorted(set(WORDS.findall(" ".join(texts).lower())) - vocabulary)
    if unknown:
        checks.warn(
            f"the model {name!r} was not trained on {', '.join(map(repr, unknown))}, which is left "
            "out; use words of encoder.vocabulary, or a real CLIP: FrozenCLIP.from_pretrained()"
        )

    def known(word: re.Match[str]) -> str:
        return word[0] if word[0].lower() in vocabulary else " "

    texts = [MARKS.sub(" ", WORDS.sub(known, text)) for text in texts]
    return [text.rstrip(" .!?") for text in texts]


def _preprocessing(visual: nn.Module) -> tuple[tuple[int, int], Any, Any]:
    """Input size, mean and std of an image tower."""
    config: dict[str, Any] = getattr(visual, "preprocess_cfg", {})
    size = config.get("size", getattr(visual, "image_size", None))
    if size is None:
        raise ValueError("`model.visual` must have `image_size` or `preprocess_cfg`, got neither")
    height, width = (size, size) if isinstance(size, int) else size
    return (height, width), config.get("mean", CLIP_MEAN), config.get("std", CLIP_STD)


def _rescale_gradient(images: Tensor, features: Tensor) -> None:
    """Keep the gradient between `features` and `images` within the range of float16.

    It is scaled to about `GRADIENT_PEAK` and back, by a power of two, so nothing is rounded.
    """
    factors = []

    def enter(gradient: Tensor) -> Tensor:
        peak = gradient.detach().abs().max() / GRADIENT_PEAK
        # Not torch.ldexp, which computes in torch's default dtype.
        factor = peak / torch.frexp(peak).mantissa
        factors.append(torch.where(peak > 0, factor, torch.ones_like(factor)))
        return gradient / factors[-1]

    def leave(gradient: Tensor) -> Tensor:
        return gradient * factors.pop()

    features.register_hook(enter)
    images.register_hook(leave)


def _compute_dtype(network: nn.Module) -> torch.dtype:
    # That of the first convolution, as mixed-precision towers keep 1-D to 3-D weights in float32.
    parameters = list(network.parameters())
    return next((p.dtype for p in parameters if p.ndim == 4), parameters[0].dtype)


# The format of fingerprints, and how many values of a tensor they cover: hashing all takes long.
VERSION = "2"
SAMPLES = 1024


def same_clip(first: str, second: str) -> bool:
    """Whether two fingerprints are of one CLIP, possibly cast, or without its text tower."""
    towers = list(zip(first.split("/"), second.split("/"), strict=False))
    if len(towers) != 3 or towers[0] != (VERSION, VERSION):
        return first == second
    return all(
        "" in tower or any(a == b for a, b in zip(*(d.split(".") for d in tower), strict=False))
        for tower in towers[1:]
    )


def _fingerprint(
    visual: nn.Module, text: nn.Module, size: tuple[int, int], mean: Iterable[float],
    std: Iterable[float],
) -> str:  # fmt: skip
    """What identifies a CLIP: weights and arithmetic of both towers, and how images come in."""
    numbers = [f"{number:.6g}" for number in (*size, *mean, *std)]
    weights = {
        name.removeprefix("text."): weight  # as in open_clip's CustomTextCLIP
        for name, weight in text.state_dict().items()
        if not name.startswith("logit_")  # scale and bias of logits, which are not used here
    }
    image = _digests(visual.state_dict(), f"{_arithmetic(visual)}{numbers}")
    return f"{VERSION}/{image}/{_digests(weights, _arithmetic(text))}"


def _digests(weights: dict[str, Tensor], arithmetic: str) -> str:
    """Digests of the weights rounded to float16 and bfloat16, as of cast copies; "" without any."""
    weights = {name: weight for name, weight in weights.items() if weight.is_floating_point()}
    if not weights:
        return ""
    digests = []
    for dtype in (torch.float16, torch.bfloat16):
        digest = hashlib.sha256(arithmetic.encode())
        for name, weight in sorted(weights.items()):
            step = max(1, weight.numel() // SAMPLES) | 1  # odd: an even one may hit one column only
            values = weight.flatten()[::step].to("cpu", dtype).contiguous()
            digest.update(f"{name}{tuple(weight.shape)}".encode())
            digest.update(bytes(values.view(torch.uint8).tolist()))
        digests.append(digest.hexdigest()[:24])
    return ".".join(digests)


def _arithmetic(tower: nn.Module) -> str:
    """What the layers compute that does not show in their weights."""
    found = set()
    for module in tower.modules():
        kind = type(module).__name__.lstrip("_")  # classes of `speed_up` begin with an underscore
        has_weights = next(module.parameters(), None) is not None
        is_activation = type(module).__module__ == "torch.nn.modules.activation"
        if not has_weights and ("GELU" in kind or is_activation):
            found.add(f"{kind}({module.extra_repr()})")
        for name in ("num_heads", "eps", "pool_type", "text_pool_type", "final_ln_after_pool"):
            if hasattr(module, name):
                found.add(f"{name.removeprefix('text_')}={getattr(module, name)}")
        if hasattr(module, "attn_mask"):
            found.add(f"causal={module.attn_mask is not None}")
    return str(sorted(found))
