"""Measure time and memory of the loss against a plain version of the published training step.

Both compute forward and backward of the language terms on the same images, in turns, so that other
load on the machine affects both alike. On shared machines rely on the ratios, not on absolute
times. CLIP has random weights, which take the same time as trained ones.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import open_clip
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from clip_fusion_loss import EmbeddedFusionModel, FrozenCLIP, LanguageDrivenFusionLoss
from parts.command_line import errors_as_messages
from parts.data.images import luminance
from parts.data.pairs import open_pairs
from parts.files import written_whole
from parts.losses.published_step import PublishedStep
from parts.pages.plots import save_costs

STAGES = ("crop", "filter", "encode", "backward")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Images = tuple[Tensor, Tensor, Tensor]
Step = Callable[[Tensor, Tensor, Tensor], object]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.draw:
        with errors_as_messages("benchmark"):
            draw(*options.draw)
        return
    if options.peak_of:
        print(peak_memory_here(options))
        return
    if options.curve:
        result = measure_curve(options)
    elif options.objectives:
        result = compare_objectives(options)
        print(f"{result['ratio']:.4f} times one objective ({result['ratios']})")
    else:
        result = compare(options)
        print(as_table(result))
    if options.json:
        with written_whole(options.json) as temporary:
            temporary.write_text(json.dumps(result, indent=2), encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    shown = "(default: %(default)s)"
    add("--batch", type=int, default=2, help=f"images per step {shown}")
    add("--patches", type=int, default=32, help=f"patches per image {shown}")
    add("--size", type=int, default=224, help=f"side of the images in pixels {shown}")
    add(
        "--precision",
        choices=DTYPES,
        default="fp32",
        help=f"precision of CLIP in our loss {shown}",
    )
    add(
        "--published-precision",
        choices=DTYPES,
        help="precision of CLIP in the published step (default: fp16 on a GPU, fp32 on a CPU)",
    )
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help=f"cpu, cuda, ... {shown}",
    )
    add("--repeats", type=int, default=5, help=f"how often to time each step {shown}")
    add("--pairs", type=Path, metavar="DIR", help="real image pairs (default: random images)")
    add(
        "--model",
        default="ViT-B-32-quickgelu",
        help=f"an open_clip architecture {shown}",
    )
    add("--chunk", type=int, help="patch_chunk of our loss (default: auto)")
    add("--compile", action="store_true", help="compile the image tower of our loss")
    add("--json", type=Path, metavar="FILE", help="also write the result to this file")
    add(
        "--curve",
        choices=("patches", "batch", "size"),
        help="measure our loss alone, for several values of this option",
    )
    add(
        "--objectives",
        action="store_true",
        help="instead, the time of our step with an objective for each image over that with one",
    )
    add(
        "--draw",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing, draw curves: the picture to write, then files written by --curve "
        "with --json, one column each",
    )
    add("--peak-of", choices=("ours", "published"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.published_precision is None:
        options.published_precision = "fp32" if options.device == "cpu" else "fp16"
    return options


def compare(options: argparse.Namespace) -> dict[str, object]:
    """Time both steps in turns; also measure memory, stages and FLOPs."""
    images, published_images = load_images(options), load_images(options, "published")
    ours, published = build_ours(options), build_published(options)
    rounds = in_turns(options.repeats, (published, published_images), (ours, images))
    ratios = [slow / fast for slow, fast in rounds]
    time_of_ours = statistics.median(fast for _, fast in rounds)
    flops = count_flops(ours, images)
    peak_flops = matmul_peak(torch.device(options.device), DTYPES[options.precision])
    our_stages, published_stages = stages(ours, images), stages(published, published_images)
    del ours, published
    peaks = {name: peak_memory(options, name) for name in ("ours", "published")}
    return {
        "speedup": statistics.median(ratios),
        "speedup_min": min(ratios),
        "speedup_max": max(ratios),
        "peak_memory_ratio": peaks["ours"] / peaks["published"],
        "peak_memory": peaks,
        "kept": kept_fraction(options, images),
        "device": device_name(options.device),
        "precision": options.precision,
        "published_precision": options.published_precision,
        "batch": options.batch,
        "patches": options.patches,
        "size": options.size,
        "model": options.model,
        "images": "random" if options.pairs is None else str(options.pairs.name),
        "torch": torch.__version__,
        "seconds": time_of_ours,
        "tflop": flops / 1e12,
        "matmul_peak_fraction": flops / time_of_ours / peak_flops,
        "stages": {"ours": our_stages, "published": published_stages},
    }


def load_images(options: argparse.Namespace, which: str = "ours") -> Images:
    """(B, 1, S, S) fused, visible and infrared images; fused is a leaf that requires a gradient."""
    shape = (options.batch, 1, options.size, options.size)
    if options.pairs is None:
        generator = torch.Generator().manual_seed(0)
        visible, infrared = torch.rand(2, *shape, generator=generator)
    else:
        pairs, _ = open_pairs(options.pairs, options.batch)
        crops = [
            [centre_crop(luminance(image), options.size) for image in (pair.visible, pair.infrared)]
            for pair in pairs
        ]
        if len(crops) < options.batch:
            raise SystemExit(
                f"--pairs must have at least --batch {options.batch} pairs, got {len(crops)} in "
                f"{options.pairs}; use a smaller --batch"
            )
        visible, infrared = (torch.stack(images) for images in zip(*crops, strict=True))
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


def build_ours(options: argparse.Namespace) -> Step:
    criterion = build_criterion(options)

    def step(fused: Tensor, visible: Tensor, infrared: Tensor) -> None:
        loss = criterion(fused, visible, infrared)
        with record_function("benchmark.backward"):
            loss.backward()

    return step


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


def build_published(options: argparse.Namespace) -> Step:
    torch.manual_seed(0)
    dtype = DTYPES[options.published_precision]
    model = open_clip.create_model(options.model).to(options.device, dtype)
    return PublishedStep(model, open_clip.get_tokenizer(options.model), options.patches)


def in_turns(repeats: int, *steps: tuple[Step, Images]) -> list[list[float]]:
    """The seconds of each step, round by round, after a round to warm up."""
    rounds = [[seconds(*step) for step in steps] for _ in range(repeats + 1)]
    return rounds[1:]


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


def stages(step: Step, images: Images) -> dict[str, float]:
    """Seconds in each stage of one profiled step."""
    on_gpu = images[0].device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        step(*images)
        synchronize(images[0].device)
    totals = dict.fromkeys(STAGES, 0.0)
    for event in profiler.key_averages():
        stage = event.key.rpartition(".")[2]
        if event.key.startswith(("benchmark.", "clip_fusion_loss.")) and stage in totals:
            microseconds = event.device_time_total if on_gpu else event.cpu_time_total
            totals[stage] += microseconds / 1e6
    return totals


def count_flops(step: Step, images: Images) -> int:
    """Floating-point operations of the matrix products and convolutions in one step."""
    with FlopCounterMode(display=False) as counter:
        step(*images)
    return counter.get_total_flops()


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best measured rate of large square matrix products, in operations per second."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    durations = []
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        left @ right
        synchronize(device)
        durations.append(time.perf_counter() - start)
    return 2 * side**3 / min(durations)


def kept_fraction(options: argparse.Namespace, images: Images) -> float:
    """Fraction of patches that pass the filter, averaged over a few draws."""
    criterion = build_criterion(options)
    with torch.no_grad():
        return statistics.mean(criterion.terms(*images).kept.item() for _ in range(3))


def peak_memory(options: argparse.Namespace, which: str) -> int:
    """Peak memory in bytes of a new process that runs two steps of `which`."""
    arguments = [f"--peak-of={which}"]
    for name in ("batch", "patches", "size", "precision", "published_precision", "device", "model"):
        arguments.append(f"--{name.replace('_', '-')}={getattr(options, name)}")
    for name in ("pairs", "chunk"):
        if getattr(options, name) is not None:
            arguments.append(f"--{name}={getattr(options, name)}")
    command = [sys.executable, __file__, *arguments, *(["--compile"] if options.compile else [])]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


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
    values = {
        "patches": (1, 4, 16, 32, 64, 128, 256),
        "batch": (1, 2, 4, 8, 16, 32),
        "size": (64, 128, 224, 512, 1024),
    }[options.curve]
    columns: dict[str, list[float]] = {"value": [], "kept": [], "seconds": [], "peak_memory": []}
    print(f"{options.curve:>8} {'kept':>6} {'seconds':>9} {'peak MB':>9}")
    for value in values:
        setattr(options, options.curve, value)
        images, step = load_images(options), build_ours(options)
        seconds(step, images)
        time_taken = statistics.median(seconds(step, images) for _ in range(options.repeats))
        kept, peak = kept_fraction(options, images), peak_memory(options, "ours")
        print(f"{value:8} {kept:6.2f} {time_taken:9.3f} {peak / 1e6:9.0f}", flush=True)
        for column, entry in zip(columns.values(), (value, kept, time_taken, peak), strict=True):
            column.append(entry)
    return {"curve": options.curve, "device": device_name(options.device), **columns}


def compare_objectives(options: argparse.Namespace) -> dict[str, object]:
    """Time our step with an objective for each image and with one, in turns."""
    images, criterion = load_images(options), build_criterion(options)
    bank = criterion.embed([f"picture number {number}" for number in range(options.batch)])

    def step(*images: Tensor, objectives: EmbeddedFusionModel | None = None) -> None:
        torch.manual_seed(0)  # the same patches, of which as many are kept
        criterion(*images, objectives=objectives).backward()

    each = partial(step, objectives=bank)
    rounds = in_turns(options.repeats, (each, images), (step, images))
    ratios = [several / one for several, one in rounds]
    return {
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "device": device_name(options.device),
        "batch": options.batch,
        "patches": options.patches,
        "model": options.model,
    }


def draw(picture: Path, *results: Path) -> None:
    """Draw the curves in files that --curve and --json wrote.

    Raises:
        OSError, ValueError: there is no file, or one is not a curve.
    """
    if not results:
        raise ValueError(
            f"--draw must have a picture to write and at least one file written by --curve with "
            f"--json, got only {picture}"
        )
    save_costs([json.loads(path.read_text(encoding="utf-8")) for path in results], picture)
    print(picture)


def as_table(result: dict) -> str:
    peaks, both = result["peak_memory"], result["stages"]
    lines = [
        "{device}; {model}; ours {precision}, published {published_precision}; batch {batch}, "
        "{patches} patches, {size} px, {images} images".format(**result),
        f"speed-up     {result['speedup']:.2f} "
        f"({result['speedup_min']:.2f} to {result['speedup_max']:.2f})",
        f"peak memory  {peaks['ours'] / 1e6:.0f} MB of {peaks['published'] / 1e6:.0f} MB, "
        f"ratio {result['peak_memory_ratio']:.2f}",
        f"kept         {result['kept']:.2f} of the patches",
        f"ours         {result['seconds']:.3f} s, {result['tflop']:.2f} TFLOP, "
        f"{result['matmul_peak_fraction']:.0%} of the measured matmul peak",
        "",
        f"{'seconds':<10}" + "".join(f"{stage:>10}" for stage in STAGES),
    ]
    for name, totals in both.items():
        lines.append(f"{name:<10}" + "".join(f"{totals[stage]:10.3f}" for stage in STAGES))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
