"""Modules whose weights and buffers stay out of checkpoints and optimizers."""

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
    """Remove the version entries of modules under `prefix` that saved nothing from `state`.

    PyTorch keeps these entries in the attribute `_metadata`, which `torch.save` writes too.
    """
    metadata = getattr(state, "_metadata", {})
    for name in [name for name in metadata if f"{name}.".startswith(prefix)]:
        if not any(key.startswith(f"{name}.") for key in state):
            del metadata[name]


def _destination(
    tensor: Tensor, fn: Callable[[Tensor], Tensor]
) -> tuple[torch.device, torch.dtype]:
    """The device and dtype to which `fn`, an argument of `nn.Module._apply`, would move `tensor`.

    `fn` is applied to an empty tensor instead: with `.to_empty()` it returns uninitialised memory,
    and no checkpoint could restore the values.
    """
    probe = fn(torch.empty(0, device=tensor.device, dtype=tensor.dtype))
    return probe.device, probe.dtype


def computes_in_float16(network: nn.Module, device: torch.device) -> bool:
    """Whether a call of `network` on `device`, under the current autocast, computes in float16."""
    known = torch.amp.is_autocast_available(device.type)
    half = known and torch.is_autocast_enabled(device.type)
    half = half and torch.get_autocast_dtype(device.type) == torch.float16
    return half or any(p.dtype == torch.float16 for p in network.parameters())


def _outlast(module: nn.Module) -> None:
    """Replace tensors made under `torch.inference_mode`, which autograd could not use."""
    with torch.inference_mode(False):
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and parameter.is_inference():
                    part._parameters[name] = nn.Parameter(parameter.clone(), False)
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.is_inference():
                    part._buffers[name] = buffer.clone()


class FixedBuffers(nn.Module):
    """A module whose buffers follow its owner's device but keep their values and dtype.

    Register them with ``persistent=False`` to keep them out of checkpoints.
    """

    def state_dict(self, *, destination: Any = None, prefix: str = "", **options: Any) -> Any:
        """Saves nothing: returns `destination` unchanged, or an empty dictionary."""
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
    """Holds a frozen network that is not registered as a submodule.

    The network does not appear in `parameters()`, `state_dict()` or `modules()` of an owner, and
    `.train()`, `.apply()` and `.requires_grad_()` do not reach it. It follows `.to()`, `.cuda()`
    and `.half()`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # nn.Module registers modules that are assigned to it, but not those in a list.
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
        """The network if it is on `device`, or else a copy that is kept there.

        `torch.nn.DataParallel` needs copies: its replicas of the owner run on several devices and
        share one list of networks.
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
            if dtype != first.dtype:  # a move alone must not change towers of mixed precision
                self.network.to(dtype=dtype)
        return self


def _refuse_as_hyperparameter(module: nn.Module) -> None:
    """Raise a TypeError if called by Lightning's `save_hyperparameters`."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        library = str(frame.f_globals.get("__name__")).partition(".")[0]
        if frame.f_code.co_name == "save_hyperparameters" and "lightning" in library:
            raise TypeError(
                f"`save_hyperparameters` must not include the loss, got one with a frozen "
                f"{type(module).__name__}: every checkpoint would contain its weights, and "
                "torch.load would refuse to read it; call "
                "self.save_hyperparameters(ignore=['criterion']) with the name of your argument, "
                "and pass the loss again to load_from_checkpoint(path, criterion=criterion)"
            )
