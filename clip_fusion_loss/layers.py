"""Faster layers for frozen towers, with the same weights and the same results.

PyTorch's vision transformers are not tuned for frozen weights with a differentiable input. The gain
is largest on a CPU and in bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["speed_up"]

# The full name, as timm has a class of the same short name.
CLIPS_POOL = "open_clip.modified_resnet.AttentionPool2d"


def speed_up(network: nn.Module) -> None:
    """Replace the forward pass of the layers that can be computed faster, in place.

    Parameters and buffers stay the same, results too up to rounding. Other layers are unchanged.
    """
    # Grouped convolutions are slower with channels_last.
    plain = all(m.groups == 1 for m in network.modules() if isinstance(m, nn.Conv2d))
    for module in network.modules():
        if type(module) is nn.MultiheadAttention and _is_plain(module):
            module.__class__ = _SelfAttention
        elif type(module) is nn.Conv2d and _takes_apart(module):
            module.__class__ = _PatchProjection
        elif type(module) is nn.Conv2d and plain:
            module.__class__ = _Convolution
        elif f"{type(module).__module__}.{type(module).__name__}" == CLIPS_POOL:
            module.__class__ = _AttentionPool
        elif type(module).__name__ == "QuickGELU" and not module.state_dict():
            module.__class__ = _QuickGELU


def _is_plain(attention: nn.MultiheadAttention) -> bool:
    return (
        attention.batch_first
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


def _takes_apart(convolution: nn.Conv2d) -> bool:
    """Whether its windows tile the image. Windows of one pixel are fast already."""
    return (
        convolution.kernel_size == convolution.stride != (1, 1)
        and convolution.padding == (0, 0)
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
    )


class _SelfAttention(nn.MultiheadAttention):
    """Projects a batch with one matrix product.

    The original transposes its input first. If the weight needs no gradient, PyTorch does not fold
    a transposed batch into a matrix, but repeats the weight for every token.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        given = {name: option for name, option in options.items() if option is not None}
        simple = not args and given == {"need_weights": False} and not self.training
        if not simple or query is not key or key is not value or query.ndim != 3:
            return super().forward(query, key, value, *args, **options)
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        heads = projected.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


class _PatchProjection(nn.Conv2d):
    """Cuts the image into windows and projects them with one matrix product.

    On a CPU the input gradient of a strided convolution takes several times as long as its forward
    pass.
    """

    def forward(self, images: Tensor) -> Tensor:
        height, width = self.kernel_size
        if images.ndim != 4 or images.shape[2] % height or images.shape[3] % width:
            return super().forward(images)
        windows = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        windows = windows.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return F.linear(windows, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class _Convolution(nn.Conv2d):
    """Keeps images in channels_last memory format on a CPU, where it is the fastest."""

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type == "cpu" and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return super().forward(images)


class _AttentionPool(nn.Module):
    """Computes the query of the one returned token only, not of all tokens."""

    positional_embedding: Tensor
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    c_proj: nn.Linear
    num_heads: int

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding.to(x.dtype)
        projected = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        heads = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in projected)
        return self.c_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(1))


class _QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)`` with one tensor kept for the backward pass in place of two."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(1.702 * x) / 1.702
