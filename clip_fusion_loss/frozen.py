"""State that belongs to nobody: in no checkpoint, in no optimizer, never trained."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FixedBuffers", "FrozenModule", "computes_in_float16", "drop_traces"]


def drop_traces(state: dict[str, Any], prefix: str) -> None:
    """Remove from a `state_dict()` what it notes of modules under `prefix` that saved nothing.

    PyTorch lists every module with its version in an attribute, which `torch.save` writes too.
    """
    metadata = getattr(state, "_metadata", {})
    for name in [name for name in metadata if f"{name}.".startswith(prefix)]:
        if not any(key.startswith(f"{name}.") for key in state):
            del metadata[name]


def _destination(
    tensor: Tensor, fn: Callable[[Tensor], Tensor]
) -> tuple[torch.device, torch.dtype]:
    """The device and dtype to which `fn`, as `nn.Module._apply` gets it, sends `tensor`.

    Asked of an empty stand-in, since `fn` may also be `.to_empty()`'s, which would leave
    uninitialised memory in place of values that no checkpoint can bring back.
    """
    probe = fn(torch.empty(0, device=tensor.device, dtype=tensor.dtype))
    return probe.device, probe.dtype


def computes_in_float16(network: nn.Module, device: torch.device) -> bool:
    """Whether `network`, if called here and now on `device`, overflows at 65504."""
    known = torch.amp.is_autocast_available(device.type)
    half = known and torch.is_autocast_enabled(device.type)
    half = half and torch.get_autocast_dtype(device.type) == torch.float16
    return half or any(p.dtype == torch.float16 for p in network.parameters())


def _outlast(module: nn.Module) -> None:
    """Replace tensors that were made under `torch.inference_mode`: no training could use them."""
    with torch.inference_mode(False):
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and parameter.is_inference():
                    part._parameters[name] = nn.Parameter(parameter.clone(), False)
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.is_inference():
                    part._buffers[name] = buffer.clone()


class FixedBuffers(nn.Module):
    """Its buffers follow the owner's device but keep their values and their precision.

    Register them with ``persistent=False`` to keep them out of checkpoints.
    """

    def state_dict(self, *, destination: Any = None, prefix: str = "", **options: Any) -> Any:
        """Nothing is saved: what was given as `destination`, untouched."""
        return OrderedDict() if destination is None else destination

    def __setstate__(self, state: dict[str, Any]) -> None:  # of copy and pickle
        super().__setstate__(state)
        _outlast(self)

    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedBuffers:
        for name, buffer in self._buffers.items():
            if buffer is not None:
                device, _ = _destination(buffer, fn)
                self._buffers[name] = buffer.to(device)
        return self


class FrozenModule(FixedBuffers):
    """Holds a network where the module machinery of its owner does not find it.

    The network never shows up in `parameters()`, `state_dict()` or `modules()` of an owner, and
    `.train()`, `.apply()` and `.requires_grad_()` pass it by. It does follow `.to()`, `.cuda()`
    and `.half()`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # nn.Module registers what it is assigned directly, but does not look into a list.
        self._hidden = [network.eval().requires_grad_(False)]
        _outlast(network)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for network in self._hidden:
            _outlast(network)

    def __reduce_ex__(self, protocol: Any) -> Any:
        _refuse_as_hyperparameter(self)
        return super().__reduce_ex__(protocol)

    @property
    def network(self) -> nn.Module:
        """The frozen network."""
        return self._hidden[0]

    def network_on(self, device: torch.device) -> nn.Module:
        """The network, or a copy of it that stays on `device`.

        Copies are needed where `torch.nn.DataParallel` runs replicas of the owner, which share
        this list, on several devices.
        """
        for network in list(self._hidden):
            if next((weight.device for weight in network.parameters()), device) == device:
                return network
        with torch.inference_mode(False):
            replica = copy.deepcopy(self.network).to(device)
        self._hidden.append(replica)
        return replica

    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenModule:
        super()._apply(fn, recurse)
        del self._hidden[1:]
        first = next(self.network.parameters(), None)
        if first is not None:
            device, dtype = _destination(first, fn)
            self.network.to(device=device)
            if dtype != first.dtype:  # towers of mixed precision stay mixed on a mere move
                self.network.to(dtype=dtype)
        return self


def _refuse_as_hyperparameter(module: nn.Module) -> None:
    """Raise a TypeError while Lightning collects what to write into every checkpoint."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        library = str(frame.f_globals.get("__name__")).partition(".")[0]
        if frame.f_code.co_name == "save_hyperparameters" and "lightning" in library:
            raise TypeError(
                f"`save_hyperparameters` must leave out the loss, got one with a frozen "
                f"{type(module).__name__}: every checkpoint would hold its weights, and "
                "torch.load would refuse to read it; call "
                "self.save_hyperparameters(ignore=['criterion']), by the argument's name, and "
                "give it again to load_from_checkpoint(path, criterion=criterion)"
            )
