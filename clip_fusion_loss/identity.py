"""Fingerprints of CLIPs, to tell whether two of them give the same embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["fingerprint_of", "is_current", "same_clip"]

VERSION = "2"

# Values hashed per tensor, evenly spaced. Training changes all values, and hashing a whole model
# would take as long as loading it.
SAMPLES = 1024


def fingerprint_of(
    visual: nn.Module, text: nn.Module, size: tuple[int, int], mean: Iterable[float],
    std: Iterable[float],
) -> str:  # fmt: skip
    """A short text that identifies a CLIP; `same_clip` compares two of them.

    It covers the weights of the image tower and of the text tower, the activations, the numbers
    of attention heads, the epsilons of the normalisations, the pooling, the causal mask of the
    text tower, and the size, mean and std of input images. Compute it before `fold_batch_norm`.
    """
    numbers = [f"{number:.6g}" for number in (*size, *mean, *std)]
    image = f"{_arithmetic(visual)}{numbers}"
    weights = {
        name.removeprefix("text."): weight  # as in open_clip's CustomTextCLIP
        for name, weight in text.state_dict().items()
        if not name.startswith("logit_")  # scale and bias of logits, which are not used here
    }
    return "/".join(
        (VERSION, _digests(visual.state_dict(), image), _digests(weights, _arithmetic(text)))
    )


def same_clip(first: str, second: str) -> bool:
    """Whether two fingerprints are of the same CLIP, possibly cast to float16 or bfloat16.

    Text towers are compared only if both fingerprints have one.
    """
    if not (is_current(first) and is_current(second)):
        return first == second
    towers = zip(first.split("/")[1:], second.split("/")[1:], strict=True)
    return all(
        "" in tower or any(a == b for a, b in zip(*(d.split(".") for d in tower), strict=False))
        for tower in towers
    )


def is_current(fingerprint: str) -> bool:
    """Whether `fingerprint` has the current format of `fingerprint_of`."""
    return fingerprint.startswith(f"{VERSION}/") and fingerprint.count("/") == 2


def _digests(weights: dict[str, Tensor], arithmetic: str) -> str:
    """Digests of the weights rounded to float16 and to bfloat16; empty if there are no weights.

    Rounding a second time to the same dtype changes nothing. So a model and its float16 copy have
    the same first digest, and a model and its bfloat16 copy the same second one.
    """
    weights = {name: weight for name, weight in weights.items() if weight.is_floating_point()}
    if not weights:
        return ""
    digests = []
    for dtype in (torch.float16, torch.bfloat16):
        digest = hashlib.sha256(arithmetic.encode())
        for name, weight in sorted(weights.items()):
            step = (
                max(1, weight.numel() // SAMPLES) | 1
            )  # odd: an even step may hit one column only
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
