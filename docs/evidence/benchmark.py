"""Measure time and memory of the loss against a plain version of the published training step.

Both compute forward and backward of the language terms on the same images, in turns, so that other
load on the machine affects both alike. On shared machines rely on the ratios, not on absolute
times. CLIP has random weights, which take the same time as trained ones. Run it in docs/ as

    python -m evidence.benchmark
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import open_clip
import torch
from torch import Tensor

from clip_fusion_loss import FrozenCLIP, LanguageDrivenFusionLoss
from evidence.published_step import PublishedStep
from options import atomic_write
from pairs import luminance, open_pairs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Values that --curve measures.
CURVES = {
    "patches": (1, 4, 16, 32, 64, 128, 256),
    "batch": (1, 2, 4, 8, 16, 32),
    "size": (64, 128, 224, 512, 1024),
}

Images = tuple[Tensor, Tensor, Tensor]
Step = Callable[[Tensor, Tensor, Tensor], object]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.peak_of:
        print(peak_memory_here(options))
        return
    result = measure_curve(options) if options.curve else compare(options)
    if options.json:
        with atomic_write(options.json) as temporary:
            temporary.write_text(json.dumps(result, indent=2), encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    shown = "(default: %(default)s)"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--batch", type=int, default=2, help=f"images per step {shown}")
    add("--patches", type=int, default=32, help=f"patches per image {shown}")
    add("--size", type=int, default=224, help=f"side of the images in pixels {shown}")
    add("--precision", choices=DTYPES, default="fp32", help=f"of CLIP in our loss {shown}")
    add("--published-precision", choices=DTYPES, help="of CLIP there (default: GPU fp16, CPU fp32)")
    add("--device", default=device, help=f"cpu, cuda, ... {shown}")
    add("--repeats", type=int, default=5, help=f"how often to time each step {shown}")
    add("--pairs", type=Path, metavar="DIR", help="real image pairs (default: random images)")
    add("--model", default="ViT-B-32-quickgelu", help=f"an open_clip architecture {shown}")
    add("--chunk", type=int, help="patch_chunk of our loss (default: auto)")
    add("--compile", action="store_true", help="compile the image tower of our loss")
    add("--json", type=Path, metavar="FILE", help="also write the result to this file")
    add("--curve", choices=CURVES, help="measure our loss alone, for several values of this option")
    add("--peak-of", choices=("ours", "published"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.published_precision is None:
        options.published_precision = "fp32" if options.device == "cpu" else "fp16"
    return options


def compare(options: argparse.Namespace) -> dict[str, object]:
    """Time both steps in turns and measure their memory; prints and returns the result."""
    images, published_images = load_images(options), load_images(options, "published")
    ours, published = build_ours(options), build_published(options)
    pairs = [
        (seconds(published, published_images), seconds(ours, images))
        for _ in range(options.repeats + 1)
    ][1:]  # the first is to warm up
    ratios = [slow / fast for slow, fast in pairs]
    kept = kept_fraction(options, images)
    del ours, published
    peaks = {name: peak_memory(options, name) for name in ("ours", "published")}
    result = {
        "speedup": statistics.median(ratios),
        "speedup_min": min(ratios),
        "speedup_max": max(ratios),
        "kept": kept,
        "bound": bound(options.patches, kept),
        "seconds": statistics.median(fast for _, fast in pairs),
        "peak_memory": peaks,
        "peak_memory_ratio": peaks["ours"] / peaks["published"],
        "device": device_name(options.device),
        "images": "random" if options.pairs is None else options.pairs.name,
        "torch": torch.__version__,
    }
    names = ("precision", "published_precision", "batch", "patches", "size", "model")
    result |= {name: getattr(options, name) for name in names}
    print(
        "{device}; {model}; ours {precision}, published {published_precision}; batch {batch}, "
        "{patches} patches, {size} px, {images} images\n"
        "speed-up     {speedup:.2f} ({speedup_min:.2f} to {speedup_max:.2f}); {bound:.2f} by "
        "calculation, in equal precision\n"
        "kept         {kept:.2f} of the patches\n"
        "ours         {seconds:.3f} s".format(**result)
    )
    megabytes = " of ".join(f"{peak / 1e6:.0f} MB" for peak in peaks.values())
    print(f"peak memory  {megabytes}, ratio {result['peak_memory_ratio']:.2f}")
    return result


def bound(patches: int, kept: float) -> float:
    """The speed-up by calculation where encoding is all that takes time.

    The published step encodes the patches and three images at three units each: forward, backward
    and weight gradients. Ours needs two for kept patches and the fused image, one for a source.
    """
    return 3 * (patches + 3) / (2 * (patches * kept + 1) + 2)


def load_images(options: argparse.Namespace, which: str = "ours") -> Images:
    """(B, 1, S, S) fused, visible and infrared images; fused is a leaf that requires a gradient."""
    shape = (options.batch, 1, options.size, options.size)
    if options.pairs is None:
        generator = torch.Generator().manual_seed(0)
        visible, infrared = torch.rand(2, *shape, generator=generator)
    else:
        pairs = open_pairs(options.pairs, options.batch)
        if len(pairs) < options.batch:
            raise SystemExit(
                f"--pairs must have at least --batch {options.batch} pairs, got {len(pairs)} in "
                f"{options.pairs}; use a smaller --batch"
            )
        visible, infrared = (
            torch.stack([centre_crop(luminance(image), options.size) for image in images])
            for images in zip(*((pair.visible, pair.infrared) for pair in pairs), strict=True)
        )
    if which == "published":  # its tower needs images of its own dtype
        dtype = DTYPES[options.published_precision]
        visible, infrared = visible.to(dtype), infrared.to(dtype)
    visible, infrared = visible.to(options.device), infrared.to(options.device)
    fused = ((visible + infrared) / 2).requires_grad_()
    return fused, visible, infrared


def centre_crop(image: Tensor, size: int) -> Tensor:
    height, width = image.shape[1:]
    if min(height, width) < size:
        raise SystemExit(
            f"--size must fit into all images, got {size} with an image of {width} x {height}; use "
            "a smaller --size"
        )
    top, left = (height - size) // 2, (width - size) // 2
    return image[:, top : top + size, left : left + size]


def build_criterion(options: argparse.Namespace) -> LanguageDrivenFusionLoss:
    torch.manual_seed(0)
    model = open_clip.create_model(options.model)
    encoder = FrozenCLIP(model, open_clip.get_tokenizer(options.model), name=options.model)
    return LanguageDrivenFusionLoss(
        encoder=encoder,
        num_patches=options.patches,
        precision=options.precision,
        patch_chunk=options.chunk or "auto",
        compile=options.compile,
    ).to(options.device)


def build_ours(options: argparse.Namespace) -> Step:
    criterion = build_criterion(options)

    def step(fused: Tensor, visible: Tensor, infrared: Tensor) -> None:
        criterion(fused=fused, visible=visible, infrared=infrared).backward()

    return step


def build_published(options: argparse.Namespace) -> Step:
    torch.manual_seed(0)
    dtype = DTYPES[options.published_precision]
    model = open_clip.create_model(options.model).to(options.device, dtype)
    return PublishedStep(model, open_clip.get_tokenizer(options.model), options.patches)


def seconds(step: Step, images: Images) -> float:
    """Wall-clock time of one step, device work included."""
    images[0].grad = None
    synchronize(images[0].device)
    start = time.perf_counter()
    step(*images)
    synchronize(images[0].device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kept_fraction(options: argparse.Namespace, images: Images) -> float:
    """Fraction of patches that pass the filter, averaged over a few draws."""
    criterion = build_criterion(options)
    sources = dict(zip(("fused", "visible", "infrared"), images, strict=True))
    with torch.no_grad():
        return statistics.mean(criterion.terms(**sources).kept.item() for _ in range(3))


def peak_memory(options: argparse.Namespace, which: str) -> int:
    """Peak memory in bytes of a new process that runs two steps of `which`."""
    arguments = [f"--peak-of={which}", *(["--compile"] if options.compile else [])]
    names = ("batch", "patches", "size", "precision", "published_precision", "device", "model")
    for name in (*names, "chunk"):
        if getattr(options, name) is not None:
            arguments.append(f"--{name.replace('_', '-')}={getattr(options, name)}")
    if options.pairs is not None:  # the process starts in another folder
        arguments.append(f"--pairs={options.pairs.resolve()}")
    command = [sys.executable, "-m", "evidence.benchmark", *arguments]
    process = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    return int(process.stdout)


def peak_memory_here(options: argparse.Namespace) -> int:
    """Peak memory in bytes of this process after two steps: of the GPU, or resident (on Linux)."""
    step = build_ours(options) if options.peak_of == "ours" else build_published(options)
    images = load_images(options, options.peak_of)
    for _ in range(2):
        step(*images)
    if images[0].device.type == "cuda":
        return torch.cuda.max_memory_allocated(images[0].device)
    # Not getrusage: it starts with the peak of the parent process.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


def device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def measure_curve(options: argparse.Namespace) -> dict[str, object]:
    """Print and return our time and peak memory for several values of the option --curve."""
    columns: dict[str, list[float]] = {"value": [], "kept": [], "seconds": [], "peak_memory": []}
    print(f"{options.curve:>8} {'kept':>6} {'seconds':>9} {'peak MB':>9}")
    for value in CURVES[options.curve]:
        setattr(options, options.curve, value)
        images, step = load_images(options), build_ours(options)
        seconds(step, images)
        time_taken = statistics.median(seconds(step, images) for _ in range(options.repeats))
        kept, peak = kept_fraction(options, images), peak_memory(options, "ours")
        print(f"{value:8} {kept:6.2f} {time_taken:9.3f} {peak / 1e6:9.0f}", flush=True)
        for column, entry in zip(columns.values(), (value, kept, time_taken, peak), strict=True):
            column.append(entry)
    return {"curve": options.curve, "device": device_name(options.device), **columns}


if __name__ == "__main__":
    main()
