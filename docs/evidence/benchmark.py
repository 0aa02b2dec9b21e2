"""Measure time and memory of the loss against a plain version of the published training step.

All compute forward and backward of the language terms on the same images, in turns, so that other
load on the machine affects them alike. On shared machines rely on the ratios, not on absolute
times. CLIP has random weights, which take the same time as trained ones. A regularizer, such as
VGG-19 of `paper()`, takes time and memory on top of all figures here. Run it in docs/ as

    python -m evidence.benchmark --pairs ROADSCENE --count 16 --ours 32 2 --precision fp32 bf16
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
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
    "model": ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "MobileCLIP-S1", "RN50-quickgelu"),
}

Images = tuple[Tensor, Tensor, Tensor]
#: Forward and backward; returns the fraction of the patches that counts.
Step = Callable[[Tensor, Tensor, Tensor], float]


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
    add("--patches", type=int, default=32, help=f"patches per image there {shown}")
    add("--ours", type=int, nargs="+", metavar="N", help="in our loss (default: as many)")
    add("--size", type=int, default=224, help=f"side of the images in pixels {shown}")
    add("--precision", choices=DTYPES, nargs="+", default=["fp32"], help="of CLIP in our loss")
    add("--published-precision", choices=DTYPES, help="of CLIP there (default: GPU fp16, CPU fp32)")
    add("--device", default=device, help=f"cpu, cuda, ... {shown}")
    add("--repeats", type=int, default=5, help=f"how often to time each batch {shown}")
    add("--pairs", type=Path, metavar="DIR", help="real image pairs (default: random images)")
    add("--count", type=int, help="image pairs, in batches of --batch (default: one batch)")
    add("--model", default="ViT-B-32-quickgelu", help=f"an open_clip architecture {shown}")
    add("--chunk", type=int, help="patch_chunk of our loss (default: auto)")
    add("--compile", action="store_true", help="compile the image tower of our loss")
    add("--json", type=Path, metavar="FILE", help="also write the result to this file")
    add("--curve", choices=CURVES, help="measure our loss alone, for several values of this option")
    add("--peak-of", choices=("ours", "published"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.published_precision = options.published_precision or (
        "fp32" if options.device == "cpu" else "fp16"
    )
    options.ours = options.ours or [options.patches]
    options.count = options.count or options.batch
    return options


def compare(options: argparse.Namespace) -> dict[str, object]:
    """Time all steps in turns and measure their memory; prints and returns the result."""
    batches = load_images(options)
    encoder = build_encoder(options)
    variants = list(product(options.ours, options.precision))
    steps = [build_published(options), *(build_ours(options, encoder, *v) for v in variants)]
    for step in steps:
        step(*batches[0])  # to warm up
    times, kept = [], []
    for images in batches * options.repeats:
        measured = [timed(step, images) for step in steps]
        times.append([time for time, _ in measured])
        kept.append([fraction for _, fraction in measured])
    del steps, step, encoder
    shown = ("device", "model", "batch", "count", "size", "patches", "published_precision")
    result = {name: getattr(options, name) for name in shown}
    result["device"] = device_name(options.device)
    result["images"] = "random" if options.pairs is None else options.pairs.name
    print(
        "{device}; {model}; {count} pairs of {images} images, {batch} a step, {size} px; the "
        "published step has {patches} patches, {published_precision}\n".format(**result)
    )
    columns = ["ours", "kept", "faster", "range", "calculated", "seconds", "MB", "share"]
    print(f"| {' | '.join(columns)} |\n|---{7 * '|---:'}|")
    published, *ours = (list(column) for column in zip(*times, strict=True))
    peak_published = peak_memory(options, "published")
    rows = []
    for index, (patches, precision) in enumerate(variants):
        ratios = [slow / fast for slow, fast in zip(published, ours[index], strict=True)]
        fraction = statistics.mean(row[index + 1] for row in kept)
        row = {
            "patches": patches,
            "precision": precision,
            "kept": fraction,
            "speedup": sum(published) / sum(ours[index]),
            "speedup_min": min(ratios),
            "speedup_max": max(ratios),
            "bound": bound(options.patches, patches, fraction),
            "seconds": statistics.median(ours[index]),
            "peak_memory": peak_memory(options, "ours", patches, precision),
        }
        row["peak_memory_ratio"] = row["peak_memory"] / peak_published
        rows.append(row)
        print(
            "| {patches} patches, {precision} | {kept:.2f} | {speedup:.2f} | {speedup_min:.2f} to "
            "{speedup_max:.2f} | {bound:.2f} | {seconds:.2f} | {megabytes:.0f} | "
            "{peak_memory_ratio:.2f} |".format(**row, megabytes=row["peak_memory"] / 1e6),
            flush=True,
        )
    return result | {
        "torch": torch.__version__,
        "published_seconds": statistics.median(published),
        "published_peak_memory": peak_published,
        "ours": rows,
    }


def bound(published: int, patches: int, kept: float) -> float:
    """The speed-up by calculation, in equal precision, where encoding is all that takes time.

    The published step encodes its patches and three images at three units each: forward, backward
    and weight gradients. Ours needs two for kept patches and the fused image, one for a source.
    """
    return 3 * (published + 3) / (2 * (patches * kept + 1) + 2)


def load_images(options: argparse.Namespace) -> list[Images]:
    """Batches of (B, 1, S, S) fused, visible, infrared images; fused leaves require a gradient."""
    if options.pairs is None:
        generator = torch.Generator().manual_seed(0)
        shape = (options.count, 1, options.size, options.size)
        sources = torch.rand(2, *shape, generator=generator)
    else:
        pairs = open_pairs(options.pairs, options.count)
        if len(pairs) < options.count:
            raise SystemExit(
                f"--pairs must have at least {options.count} pairs, got {len(pairs)} in "
                f"{options.pairs}; use a smaller --batch or --count"
            )
        crops = (
            [centre_crop(luminance(image), options.size) for image in (pair.visible, pair.infrared)]
            for pair in pairs
        )
        sources = torch.stack([torch.stack(images) for images in zip(*crops, strict=True)])
    return [
        (both.mean(0).requires_grad_(), *both)
        for both in sources.to(options.device).split(options.batch, dim=1)
    ]


def centre_crop(image: Tensor, size: int) -> Tensor:
    height, width = image.shape[1:]
    if min(height, width) < size:
        raise SystemExit(
            f"--size must fit into all images, got {size} with an image of {width} x {height}; use "
            "a smaller --size"
        )
    top, left = (height - size) // 2, (width - size) // 2
    return image[:, top : top + size, left : left + size]


def build_encoder(options: argparse.Namespace) -> FrozenCLIP:
    torch.manual_seed(0)
    model = open_clip.create_model(options.model)
    tokenizer = open_clip.get_tokenizer(options.model)
    return FrozenCLIP(model, tokenizer, name=options.model).to(options.device)


def build_ours(
    options: argparse.Namespace, encoder: FrozenCLIP, patches: int, precision: str
) -> Step:
    criterion = LanguageDrivenFusionLoss(
        encoder=encoder,
        num_patches=patches,
        precision=precision,
        patch_chunk=options.chunk or "auto",
        compile=options.compile,
    )

    def step(fused: Tensor, visible: Tensor, infrared: Tensor) -> float:
        terms = criterion.terms(fused=fused, visible=visible, infrared=infrared)
        terms.total.backward()
        return terms.kept.item()

    return step


def build_published(options: argparse.Namespace) -> Step:
    torch.manual_seed(0)
    dtype = DTYPES[options.published_precision]  # its tower needs images of its own dtype
    model = open_clip.create_model(options.model).to(options.device, dtype)
    run = PublishedStep(model, open_clip.get_tokenizer(options.model), options.patches)

    def step(*images: Tensor) -> float:
        fused, visible, infrared = (image.detach().to(dtype) for image in images)
        run(fused.requires_grad_(), visible, infrared)
        return 1.0

    return step


def timed(step: Step, images: Images) -> tuple[float, float]:
    """Wall-clock time of one step, device work included, and what the step returns."""
    images[0].grad = None
    synchronize(images[0].device)
    start = time.perf_counter()
    kept = step(*images)
    synchronize(images[0].device)
    return time.perf_counter() - start, kept


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(
    options: argparse.Namespace, which: str, patches: int | None = None, precision: str = "fp32"
) -> int:
    """Peak memory in bytes of a new process that runs two steps of `which`."""
    arguments = [f"--peak-of={which}", f"--precision={precision}"]
    arguments += [f"--ours={patches}"] if patches else []
    arguments += ["--compile"] if options.compile else []
    for name in ("batch", "patches", "size", "published_precision", "device", "model", "chunk"):
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
    if options.peak_of == "ours":
        encoder = build_encoder(options)
        step = build_ours(options, encoder, options.ours[0], options.precision[0])
    else:
        step = build_published(options)
    (images,) = load_images(options)
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
    columns: dict[str, list[object]] = {"value": [], "kept": [], "seconds": [], "peak_memory": []}
    print(f"{options.curve:>18} {'kept':>6} {'seconds':>9} {'peak MB':>9}")
    (precision,) = options.precision
    for value in CURVES[options.curve]:
        setattr(options, options.curve, value)
        patches = value if options.curve == "patches" else options.ours[0]
        options.count = options.batch
        (images,) = load_images(options)
        step = build_ours(options, build_encoder(options), patches, precision)
        step(*images)
        measured = [timed(step, images) for _ in range(options.repeats)]
        time_taken, kept = (statistics.median(column) for column in zip(*measured, strict=True))
        peak = peak_memory(options, "ours", patches, precision)
        print(f"{value:>18} {kept:6.2f} {time_taken:9.3f} {peak / 1e6:9.0f}", flush=True)
        for column, entry in zip(columns.values(), (value, kept, time_taken, peak), strict=True):
            column.append(entry)
    return {"curve": options.curve, "device": device_name(options.device), **columns}


if __name__ == "__main__":
    main()
