"""What the loss costs, beside a plain transcription of the published training step.

Both take forward and backward of the language terms on the same images, in turns, so that
whatever else the machine does hits both alike. Absolute times mean little on shared machines; the
ratios do. CLIP has random weights, which cost what trained ones do.
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

from clip_fusion_loss import FrozenCLIP, LanguageDrivenFusionLoss
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
    add("--batch", type=int, default=2, help=f"images a step {shown}")
    add("--patches", type=int, default=32, help=f"patches an image {shown}")
    add("--size", type=int, default=224, help=f"side of the images in pixels {shown}")
    add(
        "--precision",
        choices=DTYPES,
        default="fp32",
        help=f"of CLIP in our loss {shown}",
    )
    add(
        "--published-precision",
        choices=DTYPES,
        help="of CLIP in the published step (default: fp16 on a GPU, fp32 on a CPU)",
    )
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help=f"cpu, cuda, ... {shown}",
    )
    add("--repeats", type=int, default=5, help=f"pairs of steps to time {shown}")
    add("--pairs", type=Path, metavar="DIR", help="real image pairs (default: random images)")
    add(
        "--model",
        default="ViT-B-32-quickgelu",
        help=f"any architecture that open_clip knows {shown}",
    )
    add("--chunk", type=int, help="patch_chunk of our loss (default: its own)")
    add("--compile", action="store_true", help="compile the image tower of our loss")
    add("--json", type=Path, metavar="FILE", help="write the result here too")
    add(
        "--curve",
        choices=("patches", "batch", "size"),
        help="instead, our time and memory as this grows, the other options fixed",
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
        help="instead, draw curves: the picture to write, then files by --json, a column each",
    )
    add("--peak-of", choices=("ours", "published"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.published_precision is None:
        options.published_precision = "fp32" if options.device == "cpu" else "fp16"
    return options


def compare(options: argparse.Namespace) -> dict[str, object]:
    """Time both steps in turns and gather everything else there is to say."""
    images, published_images = load_images(options), load_images(options, "published")
    ours, published = build_ours(options), build_published(options)
    ratios, our_times = [], []
    for repeat in range(options.repeats + 1):
        slow = seconds(published, published_images)
        fast = seconds(ours, images)
        if repeat:  # the first one warms up
            ratios.append(slow / fast)
            our_times.append(fast)
    time_of_ours = statistics.median(our_times)
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
    """Fused (a leaf that wants a gradient), visible and infrared (B, 1, S, S) images."""
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
            raise SystemExit(f"--pairs {options.pairs} has fewer than {options.batch} pairs")
        visible, infrared = (torch.stack(images) for images in zip(*crops, strict=True))
    if which == "published":  # its tower takes images of its own precision only
        dtype = DTYPES[options.published_precision]
        visible, infrared = visible.to(dtype), infrared.to(dtype)
    visible, infrared = visible.to(options.device), infrared.to(options.device)
    fused = ((visible + infrared) / 2).requires_grad_()
    return fused, visible, infrared


def centre_crop(image: Tensor, size: int) -> Tensor:
    height, width = image.shape[1:]
    if min(height, width) < size:
        raise SystemExit(f"--size {size} is more than an image of {width} x {height} has")
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
    """The best rate of large square matrix products here, in operations a second."""
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
    """Peak bytes of a process that does nothing but two steps of `which`."""
    arguments = [f"--peak-of={which}"]
    for name in ("batch", "patches", "size", "precision", "published_precision", "device", "model"):
        arguments.append(f"--{name.replace('_', '-')}={getattr(options, name)}")
    for name in ("pairs", "chunk"):
        if getattr(options, name) is not None:
            arguments.append(f"--{name}={getattr(options, name)}")
    command = [sys.executable, __file__, *arguments, *(["--compile"] if options.compile else [])]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_memory_here(options: argparse.Namespace) -> int:
    """Peak bytes of this process after two steps: of the GPU, or else resident (on Linux)."""
    step = build_ours(options) if options.peak_of == "ours" else build_published(options)
    images = load_images(options, options.peak_of)
    for _ in range(2):
        step(*images)
    if images[0].device.type == "cuda":
        return torch.cuda.max_memory_allocated(images[0].device)
    # Not getrusage: there a process starts with the peak of the one that launched it.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


def device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def measure_curve(options: argparse.Namespace) -> dict[str, object]:
    """Print our time and peak memory as one of batch, patches and size grows; returns the same."""
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
    ratios = []
    for repeat in range(options.repeats + 1):
        times = []
        for objectives in (bank, None):
            torch.manual_seed(repeat)  # the same patches, of which as many are kept
            step = partial(criterion, objectives=objectives)
            times.append(seconds(lambda *images, step=step: step(*images).backward(), images))
        if repeat:  # the first one warms up
            ratios.append(times[0] / times[1])
    return {
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "device": device_name(options.device),
        "batch": options.batch,
        "patches": options.patches,
        "model": options.model,
    }


def draw(picture: Path, *results: Path) -> None:
    """Draw the curves that were measured before.

    Raises:
        OSError, ValueError: there are none, or they are something else.
    """
    if not results:
        raise ValueError("--draw needs the picture to write and at least one file by --json")
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
