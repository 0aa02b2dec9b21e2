"""Print versions, devices and cached weights for a bug report, and run the loss once per device.

The loss uses the bundled CLIP on random images, so nothing is downloaded. The exit status is 1 if
it fails on any device.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from . import __version__
from .loss import LanguageDrivenFusionLoss

PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "timm", "huggingface_hub", "safetensors", "ftfy",
    "regex", "numpy",
)  # fmt: skip

# Where the hubs keep what `LanguageDrivenFusionLoss.paper()` needs.
CLIP_FILES = "models--timm--vit_base_patch32_clip_224.openai/snapshots/*/open_clip_*.safetensors"
VGG_FILE = "checkpoints/vgg19-dcbb9e9d.pth"


def main() -> int:
    """Print the report; returns the exit status."""
    for name, value in [*versions(), *devices(), *caches()]:
        print(f"{name:<18} {value}", flush=True)
    wrong = 0
    for device in usable_devices():
        outcome, fine = one_step(device)
        print(f"{f'step on {device}':<18} {outcome}", flush=True)
        wrong += not fine
    return 1 if wrong else 0


def versions() -> Iterator[tuple[str, str]]:
    yield "clip_fusion_loss", __version__
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"


def devices() -> Iterator[tuple[str, str]]:
    yield "CPU", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"


def caches() -> Iterator[tuple[str, str]]:
    """The folders, and whether the paper's weights are in them."""
    from huggingface_hub import constants

    offline = " (offline)" * constants.HF_HUB_OFFLINE
    for name, folder, file in (
        ("CLIP cache", f"{constants.HF_HUB_CACHE}", CLIP_FILES),
        ("VGG cache", torch.hub.get_dir(), VGG_FILE),
    ):
        there = any(path.is_file() for path in Path(folder).glob(file))
        yield name, f"{folder}{offline}: {'has' if there else 'does not have'} the paper's weights"
        offline = ""


def usable_devices() -> list[str]:
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *gpus, *["mps"] * torch.backends.mps.is_available()]


def one_step(device: str) -> tuple[str, bool]:
    """A text about value and gradient with the bundled CLIP, and whether both are finite."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 1, 1, 128, 128, generator=generator).to(device)
    fused = images[0].requires_grad_()
    try:
        criterion = LanguageDrivenFusionLoss.tiny(generator=generator).to(device)
        loss = criterion(fused=fused, visible=images[1], infrared=images[2])
        (gradient,) = torch.autograd.grad(loss, fused)
        fine = bool(loss.isfinite()) and bool(gradient.isfinite().all())
    except Exception as error:  # any error belongs in the report
        return f"failed: {type(error).__name__}: {error}", False
    words = "works" if fine else "is not finite"
    numbers = f"loss {loss.item():.4f}, gradient {gradient.norm().item():.2e}"
    return f"{words} (bundled CLIP on noise): {numbers}", fine


if __name__ == "__main__":
    argparse.ArgumentParser("python -m clip_fusion_loss", description=__doc__).parse_args()
    sys.exit(main())
