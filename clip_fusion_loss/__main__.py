"""Print versions, cached weights and devices for a bug report; run the loss once per device.

It uses the bundled CLIP, so nothing is downloaded. The exit status is 1 if a device fails.
"""

from __future__ import annotations

import argparse
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from . import __version__
from .loading import WEIGHTS
from .loss import LanguageDrivenFusionLoss
from .regularizers import cache_path

PACKAGES = ["torch", "torchvision", "open_clip_torch", "timm", "huggingface_hub", "safetensors"]


def main() -> int:
    """Print the report; returns the exit status."""
    report("clip_fusion_loss", __version__)
    report("Python", f"{platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        try:
            report(package, version(package))
        except PackageNotFoundError:
            report(package, "not installed")
    for name, (path, size) in cached_weights().items():
        missing = (
            f"not in the cache; the first `paper()` downloads {size} MB, or see docs/encoders.md"
        )
        report(name, str(path or missing))
    report("CPU", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    devices = ["cpu", *["mps"] * torch.backends.mps.is_available()]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        report(f"cuda:{index}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
        devices.append(f"cuda:{index}")
    outcomes = [one_step(device) for device in devices]
    return 0 if all(outcomes) else 1


def cached_weights() -> dict[str, tuple[Path | None, int]]:
    """Where the weights of the paper's loss lie, or None; and their size in megabytes."""
    import open_clip
    from huggingface_hub import constants, try_to_load_from_cache
    from torchvision.models import VGG19_Weights

    clip = open_clip.get_pretrained_cfg("ViT-B-32-quickgelu", "openai")["hf_hub"].rstrip("/")
    found = (
        try_to_load_from_cache(clip, name, cache_dir=constants.HF_HUB_CACHE) for name in WEIGHTS
    )
    path = next((Path(each) for each in found if isinstance(each, str)), None)
    vgg = cache_path(VGG19_Weights.IMAGENET1K_V1.url)
    return {"CLIP ViT-B/32": (path, 350), "VGG-19": (vgg if vgg.is_file() else None, 550)}


def report(name: str, value: str) -> None:
    print(f"{name:<18} {value}", flush=True)


def one_step(device: str) -> bool:
    """Report value and gradient with the bundled CLIP; whether both are finite."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 1, 1, 128, 128, generator=generator)
    fine = False
    try:
        images = images.to(device)
        fused = images[0].requires_grad_()
        criterion = LanguageDrivenFusionLoss.tiny(generator=generator).to(device)
        loss = criterion(fused=fused, visible=images[1], infrared=images[2])
        (gradient,) = torch.autograd.grad(loss, fused)
        fine = bool(loss.isfinite()) and bool(gradient.isfinite().all())
        outcome = f"{'works' if fine else 'is not finite'} (bundled CLIP on noise): "
        outcome += f"loss {loss.item():.4f}, gradient {gradient.norm().item():.2e}"
    except Exception as error:  # any error belongs in the report
        outcome = f"failed: {type(error).__name__}: {error}"
    report(f"step on {device}", outcome)
    return fine


if __name__ == "__main__":
    argparse.ArgumentParser("python -m clip_fusion_loss", description=__doc__).parse_args()
    sys.exit(main())
