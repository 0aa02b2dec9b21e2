"""Networks and tensors that belong to no checkpoint, optimizer or process group."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@contextmanager
def default_torch_state() -> Iterator[None]:
    """Context or decorator for code that creates networks, text embeddings and other lasting state.

    Inside, the caller's `torch.inference_mode`, grad mode and default device have no effect. The
    default dtype stays, as it is not local to the thread: give each new tensor its dtype.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        probe = nn.Module()
        probe.weight = nn.Parameter(torch.empty(0, dtype=torch.float32))
        if probe.weight.is_meta:
            place = "outside `accelerate.init_empty_weights()`"
            raise RuntimeError(f"networks must be built {place}, got parameters without values")
        yield


class FrozenModule(nn.Module):
    """Keeps the attributes that `frozen` names, networks and tensors, out of everybody's sight.

    Nothing trains, saves, averages or broadcasts them, and `.train()`, `.apply()` and
    `.requires_grad_()` do not reach them. They follow `.to()` and the like: a tensor to another
    device, with its dtype; a network also to another dtype. Networks are put into eval mode.
    """

    frozen: ClassVar[tuple[str, ...]] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.frozen:
            super().__setattr__(name, value)
            return
        if isinstance(value, nn.Module):
            value.eval().requires_grad_(False)
        object.__setattr__(self, name, _lasting(value))  # nn.Module's own would register networks

    def __setstate__(self, state: dict[str, Any]) -> None:  # of copy and pickle
        super().__setstate__(state)
        for name in self.frozen:
            setattr(self, name, getattr(self, name))

    def state_dict(self, *, destination: Any = None, prefix: str = "", **options: Any) -> Any:
        """Saves nothing: returns `destination` unchanged, or an empty dictionary."""
        return OrderedDict() if destination is None else destination

    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenModule:
        for name in self.frozen:
            value = getattr(self, name)
            network = isinstance(value, nn.Module)
            first = next(value.parameters(), None) if network else value
            if first is None:
                continue
            # Of an empty tensor, as `fn` of `.to_empty()` returns uninitialised memory.
            probe = fn(torch.empty(0, device=first.device, dtype=first.dtype))
            value = value.to(probe.device)
            if network and probe.dtype != first.dtype:  # not always: precisions may be mixed
                value = value.to(probe.dtype)
            setattr(self, name, value)
        return super()._apply(fn, recurse)


def _lasting(value: Any) -> Any:
    """`value` without tensors made under `torch.inference_mode`, which autograd could not use."""
    with torch.inference_mode(False):
        if isinstance(value, Tensor):
            return value.clone() if value.is_inference() else value
        for part in value.modules():
            for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
                if tensor is not None and tensor.is_inference():
                    if name in part._parameters:
                        part._parameters[name] = nn.Parameter(tensor.clone(), False)
                    else:
                        part._buffers[name] = tensor.clone()
    return value


def computes_in_float16(network: nn.Module, device: torch.device) -> bool:
    """Whether a call of `network` on `device`, under the current autocast, computes in float16."""
    known = torch.amp.is_autocast_available(device.type)
    half = known and torch.is_autocast_enabled(device.type)
    half = half and torch.get_autocast_dtype(device.type) == torch.float16
    return half or any(p.dtype == torch.float16 for p in network.parameters())
