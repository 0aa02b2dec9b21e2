"""Batch norm of frozen towers, folded into the convolutions before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

__all__ = ["fold_batch_norm"]


def fold_batch_norm(network: nn.Module, images: Tensor) -> bool:
    """Fold batch norms into convolutions, in place; outputs stay the same up to rounding.

    A batch norm is folded if it is the only consumer of a convolution's output and both are called
    once. A forward pass on the meta device shows this for any network; the order in which modules
    are registered does not.

    Args:
        network: in eval mode; it must not be trained later.
        images: an input of the network, on the device "meta".

    Returns:
        Whether anything was folded, that is whether weights changed.
    """
    if all(_remainder(module) is None for module in network.modules()):
        return False
    tensors = dict(chain(network.named_parameters(), network.named_buffers()))
    stand_ins = {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}
    owners = {
        id(t): network.get_submodule(name.rpartition(".")[0]) for name, t in stand_ins.items()
    }
    originals = {id(t): tensors[name] for name, t in stand_ins.items()}
    with torch.no_grad(), _Calls() as seen:
        try:
            returned = torch.func.functional_call(network, stand_ins, (images,))
        except Exception:  # a tower that cannot run on the meta device is left unfolded
            return False

    uses = Counter(id(tensor) for _, inputs, _ in seen.calls for tensor in inputs)
    uses.update(id(tensor) for tensor in _tensors(returned))
    makers = {id(output): call for call in seen.calls for output in _tensors(call[2])}

    def module_of(inputs: list[Tensor], names: tuple[str, ...]) -> nn.Module | None:
        """The module whose tensors of these names are all inputs after the first, used only here.

        None if there is no such module.
        """
        module = owners.get(id(inputs[1])) if len(inputs) > 1 else None
        own = [getattr(module, name, None) for name in names]
        used = [originals.get(id(tensor)) for tensor in inputs[1:]]
        same = [id(t) for t in used] == [id(t) for t in own if t is not None]
        return module if same and all(uses[id(tensor)] == 1 for tensor in inputs[1:]) else None

    folded = False
    for function, inputs, _ in seen.calls:
        if function is not F.batch_norm or uses[id(inputs[0])] != 1:
            continue
        maker, sources, _ = makers.get(id(inputs[0]), (None, [], None))
        norm = module_of(inputs, ("running_mean", "running_var", "weight", "bias"))
        convolution = module_of(sources, ("weight", "bias")) if maker is F.conv2d else None
        if isinstance(convolution, nn.Conv2d) and _remainder(norm) is not None:
            folded |= _fold(convolution, norm)
    return folded


def _fold(convolution: nn.Conv2d, norm: Any) -> bool:
    """Fold `norm` into `convolution`; False if the weights' dtype cannot hold the result."""

    def exact(tensor: Any) -> Any:  # on the CPU, as not every device has float64
        return None if tensor is None else tensor.detach().to("cpu", torch.float64)

    weight, bias = fuse_conv_bn_weights(
        exact(convolution.weight),
        exact(convolution.bias),
        exact(norm.running_mean),
        exact(norm.running_var),
        norm.eps,
        exact(norm.weight),
        exact(norm.bias),
    )
    folded = [tensor.detach().to(convolution.weight) for tensor in (weight, bias)]
    if not all(tensor.isfinite().all() for tensor in folded):  # beyond the range of float16
        return False
    convolution.weight, convolution.bias = (nn.Parameter(t, requires_grad=False) for t in folded)
    norm.__class__ = _remainder(norm)
    for name in (*norm._parameters, *norm._buffers):
        setattr(norm, name, None)
    return True


class _Calls(TorchFunctionMode):
    """Records calls of PyTorch functions with their input and output tensors."""

    def __init__(self) -> None:
        super().__init__()
        # Tensors are kept alive here, so that no id is used twice.
        self.calls: list[tuple[Callable[..., Any], list[Tensor], Any]] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if any(True for _ in _tensors(output)):  # not .shape and the like
            self.calls.append((function, list(_tensors((args, kwargs))), output))
        return output


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _remainder(module: Any) -> type[nn.Module] | None:
    """The class that a batch norm becomes once folded; None if the module cannot be folded."""
    kind = type(module)
    in_timm = kind.__module__.startswith("timm.")
    if kind in (nn.BatchNorm2d, nn.SyncBatchNorm):
        remainder: type[nn.Module] = nn.Identity
    elif in_timm and kind.__name__ in ("BatchNormAct2d", "SyncBatchNormAct"):
        remainder = _ActivationAlone
    else:
        return None
    return None if module.training or module.running_mean is None else remainder


class _ActivationAlone(nn.Module):
    """The dropout and activation of timm's `BatchNormAct2d`, without the batch norm."""

    act: nn.Module
    drop: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))
