"""Train a fusion network on your pairs as a sentence describes, or one network for many sentences.

The --out folder then holds:

  network.safetensors  the network, for fuse.py
  log.csv              the terms of the loss per step
  samples/             a few pairs, fused during the training in full size
  state-STEP/          weights, optimizer, schedule and random numbers, for --resume
  tensorboard/         log and samples for --log-to tensorboard: `tensorboard --logdir OUT`

Ctrl-C saves and stops; the same command with --resume continues. The defaults are the settings of
the paper (Wang et al., ACM MM 2025), but for the network and for two patches in place of 32.
"""

import argparse
import csv
import inspect
import json
import math
import os
import re
import shutil
import signal
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while PyTorch is loaded

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import load, set_seed
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import masks
import options
import pairs
import sheets
import training
from clip_fusion_loss import EmbeddedFusionModel, FusionObjective, LanguageDrivenFusionLoss
from networks import NETWORKS
from networks.weights import NETWORK, SENTENCES, save_trained

EXAMPLES = f"""\
examples:
  python examples/train.py --pairs DIR --out runs/dark --prompt "a dark image" --encoder tiny \\
      --steps 300 --crop 96 --batch 3 --rate 2e-3
  accelerate launch --num_processes 4 examples/train.py --network ldfusion --pairs DIR \\
      --out runs/paper --encoder ViT-B-32-quickgelu/openai --batch 4 --patches 32

{pairs.LAYOUT}
"""

#: Options that a resumed training may change; all others must be as they were.
FREE_OPTIONS = {
    *("pairs", "infrared", "visible", "out", "resume", "device", "workers", "epochs", "steps"),
    *("batch", "accumulate", "save_every", "sample_every", "log_to", "encoder", "vgg19", "prompts"),
}
#: What a closed terminal sends, where the system has it.
HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)
WEIGHTS = ("direction_weight", "patch_weight", "similarity_weight", "regularizer_weight")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options.new_parser(__doc__, EXAMPLES)
    add, whole, number = partial(options.add, parser), options.whole_number, options.number
    add("--network", "the network", "unet", choices=NETWORKS)
    add("--max-pairs")
    add("--out", required=True)
    add("--resume", "continue the training in --out", action="store_true")
    add("--prompt", "; repeat it for an ensemble (default: the paper's)")
    add("--opposite", "; repeat it for several")
    text = "one unet for all sentences in a file, one a line; `3 | a dark image` is drawn 3 times, "
    text += "`a clear image | not: a bright image` has an opposite"
    add("--prompts", text, type=Path)
    text = "of --prompts one for each region: random, or DIR/seg with the pairs' label images"
    add("--regions", text, metavar="WHERE")
    sources = {"action": "append", "metavar": "TEXT"}
    add("--visible-text", "the visible image in words (default: the paper's)", **sources)
    add("--infrared-text", "the infrared image in words (default: the paper's)", **sources)
    add("--encoder")
    defaults = defaults_in_words()
    add("--patches", f"patches per crop {defaults['num_patches']}", type=whole)
    for name in WEIGHTS:
        add(f"--{name.replace('_', '-')}", defaults[name], type=number)
    add("--regularizer", "(default: vgg; structure with tiny)", choices=training.REGULARIZERS)
    add("--vgg19", "weights for --regularizer vgg (default: download)", type=Path)
    add("--crop", "side of the crops; smaller images are enlarged", 224, type=whole)
    add("--crops-per-pair", "crops of each pair per epoch", 10, type=whole)
    add("--no-augment", "do not rotate, shift, zoom and shear the crops", action="store_true")
    add("--noise", "standard deviation of noise on the network's inputs", 0.03, type=number)
    add("--rate", "learning rate of Adam", 5e-4, type=options.positive_number)
    add("--batch", "crops per batch of each process", 16, type=whole)
    add("--accumulate", "batches per step (gradient accumulation)", 1, type=whole)
    text = "limit of the gradients' norm "
    text += f"(default: {training.MANY_MAX_NORM} with --prompts, else none)"
    add("--max-norm", text, type=options.positive_number)
    add("--epochs", "length of the training", 100.0, type=options.positive_number)
    add("--steps", ", instead of --epochs")
    add("--seed", default=0)
    add("--device")
    add("--amp", "mixed precision (default: float32)", choices=("bf16", "fp16"))
    add("--workers", "data loading processes", 0, type=options.natural)
    add("--save-every", "steps between states; 0: only at the end", 500, type=options.natural)
    add("--sample-every", "the same for sample images", 500, type=options.natural)
    text = "show log and samples in tensorboard or wandb; or the log in a tracker of Accelerate"
    add("--log-to", text, metavar="TRACKER")
    return parser.parse_args(arguments)


def defaults_in_words() -> dict[str, str]:
    """What an option of the loss is by default: in general, and with tiny."""
    tiny = LanguageDrivenFusionLoss.tiny()
    general = inspect.signature(LanguageDrivenFusionLoss).parameters
    words = {
        name: f"(default: {general[name].default:g}; with tiny {getattr(tiny, name):g})"
        for name in WEIGHTS
    }
    few, paper = training.PATCHES, general["num_patches"].default
    return words | {"num_patches": f"(default: {few}; the paper's: {paper})"}


@options.errors_as_messages("train")
def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parse(arguments)
    if chosen.encoder is None:
        raise ValueError(
            "--encoder must name the CLIP of the loss: ViT-B-32-quickgelu/openai is the paper's, "
            "downloaded once; tiny, the bundled one, is for a first try"
        )
    folders = pairs.folders_of(chosen.pairs, chosen.infrared, chosen.visible)
    pairs.keep_apart(chosen.out, folders)
    if not str(chosen.out).isprintable():  # safetensors opens Unicode names only
        raise ValueError(f"--out must be a name in Unicode, got {str(chosen.out)!a}")
    with options.claimed(chosen.out), stop_on_request() as stop:
        finished = train(chosen, folders, stop)
    if not finished:
        sys.exit(130)


def train(chosen: argparse.Namespace, folders: pairs.Folders, stop: Event) -> bool:
    """Train to the end, or until asked to stop; returns whether it was the end."""
    if chosen.prompts and (chosen.prompt or chosen.opposite or chosen.network != "unet"):
        raise ValueError(
            "--prompts must be used without --prompt and --opposite and with --network unet; write "
            "`a clear image | not: a bright image` into the file"
        )
    if chosen.regions and not chosen.prompts:
        raise ValueError("--regions must be used with --prompts, which has their sentences")
    if chosen.device not in (None, "cpu"):
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(options.choose_device(chosen.device))
    accelerator = Accelerator(
        cpu=chosen.device == "cpu",
        mixed_precision=chosen.amp or "no",
        gradient_accumulation_steps=chosen.accumulate,
        log_with=chosen.log_to,
        project_dir=chosen.out,
        step_scheduler_with_optimizer=False,  # else it steps once for each process
    )
    device, first = accelerator.device, accelerator.is_main_process
    state = max(states_in(chosen.out), default=None)
    if state and not chosen.resume:
        raise ValueError(f"--out {chosen.out} holds a training; pass --resume, or another --out")

    opened = pairs.open_pairs(folders, chosen.max_pairs)
    regions, augment = chosen.regions, not chosen.no_augment
    if regions not in (None, "random"):
        regions = masks.open_labels(Path(regions), opened.files)
    # Patches and noise differ between processes; the network is everywhere the first one's.
    set_seed(chosen.seed, device_specific=True)
    with options.warnings_as_notes():
        criterion = build_loss(chosen).to(device)
        texts = (chosen.prompts, criterion.objective)
        weights = training.read_sentences(*texts) if chosen.prompts else {}
        bank = criterion.embed(list(weights)) if weights else None
    more = augment, chosen.seed, regions, list(weights.values())
    crops = training.Crops(opened, chosen.crop, chosen.crops_per_pair, *more)
    crops_a_step = chosen.batch * chosen.accumulate * accelerator.num_processes
    step = int(state.name.removeprefix("state-")) if state else 0
    last = chosen.steps or math.ceil(chosen.epochs * len(crops) / crops_a_step)
    if step > last:
        raise ValueError(f"--steps must exceed the {step} steps done, got {last}")
    network = NETWORKS[chosen.network](*(bank.text_direction.shape[1:] if bank else ()))
    draw = training.DrawnSentences(bank, list(weights.values())) if bank else None
    if bank and chosen.similarity_weight is None:
        criterion.similarity_weight *= training.MANY_SIMILARITY
    settings = {name: value for name, value in vars(chosen).items() if name not in FREE_OPTIONS}
    settings |= {"pairs used": len(opened), "crops a step": crops_a_step}
    settings |= {"encoder": criterion.encoder.fingerprint, "sentences": weights}
    settings["regions"] = regions if regions in (None, "random") else "label images"
    if first:
        check_settings(settings, chosen.out / "settings.json", resumed=state is not None)
        for name in () if state else (NETWORK, SENTENCES):  # of an earlier training
            (chosen.out / name).unlink(missing_ok=True)
        if bank:
            bank.save(chosen.out / SENTENCES)

    optimizer = torch.optim.Adam(network.parameters(), lr=chosen.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: rate_factor(done, last))
    loader = DataLoader(
        crops,
        chosen.batch,
        sampler=range(step * crops_a_step, last * crops_a_step),
        num_workers=chosen.workers,
        worker_init_fn=ignore_interrupts,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the global one is left to noise and patches
    )
    network, optimizer, schedule, loader = accelerator.prepare(network, optimizer, schedule, loader)
    if chosen.log_to:
        start_tracker(accelerator, chosen.log_to, chosen.out)
    if state:
        load_state(accelerator, state)
    max_norm = chosen.max_norm
    if draw:
        draw.calls = step * chosen.accumulate
        max_norm = max_norm or training.MANY_MAX_NORM
    where = f"{accelerator.num_processes} x {device.type}"
    accelerator.print(f"{chosen.network} on {len(opened)} pairs; steps {step} to {last}; {where}")

    def save() -> None:
        if first:
            plain = accelerator.unwrap_model(network)
            save_trained(plain, chosen.out, chosen.network, chosen.encoder)
        save_state(accelerator, chosen.out, step)

    bar = options.progress(None, "training", "step", initial=step, total=last, disable=not first)
    sums: Any = 0
    network.train()
    try:
        for images in loader:
            with accelerator.accumulate(network):
                given = dict(zip(("visible", "infrared", "regions"), images, strict=False))
                if draw:
                    given["objectives"] = bank if regions else draw(len(images[0]))
                # The network gets noise on its inputs, the loss the clean images.
                noisy = {
                    name: given[name] + chosen.noise * torch.randn_like(given[name])
                    for name in ("visible", "infrared")
                }
                with accelerator.autocast():
                    terms = training.loss_terms(network, criterion, given, noisy)
                accelerator.backward(terms["total"])
                sums = sums + torch.stack(list(terms.values())).detach() / chosen.accumulate
                if not accelerator.sync_gradients:
                    continue
                # All in one transfer, for each would wait for the device on its own.
                means = accelerator.reduce(sums, "mean").tolist()
                row = dict(zip(terms, means, strict=True))
                if not math.isfinite(total := row["total"]):
                    raise ValueError(f"the loss is {total} in step {step + 1}; try a lower --rate")
                if max_norm:
                    accelerator.clip_grad_norm_(network.parameters(), max_norm)
                optimizer.step()
                optimizer.zero_grad()
                row["rate"] = schedule.get_last_lr()[0]
                schedule.step()
            step, sums = step + 1, 0
            accelerator.log(row, step=step)
            if first:
                log_row(chosen.out / "log.csv", {"step": step} | row)
            bar.update()
            bar.set_postfix(training.shown(row, criterion), refresh=False)
            if stop.is_set():
                accelerator.set_trigger()
            stopping = accelerator.check_trigger()  # in any process
            if step == last or stopping or (chosen.save_every and step % chosen.save_every == 0):
                save()
            due = chosen.sample_every and step % chosen.sample_every == 0
            if first and (step == last or due):
                path = chosen.out / "samples" / f"step_{step:07d}.png"
                save_samples(accelerator.unwrap_model(network), opened, bank, path)
                for tracker in accelerator.trackers:
                    show_samples(tracker, path, step)
                network.train()
            if stopping:
                break
    except (pairs.UnusableImageError, OSError):  # a source that has vanished, a full log disk
        if accelerator.num_processes == 1:
            save()
        raise
    bar.close()
    accelerator.end_training()
    end = "finished" if step == last else f"stopped after step {step}; --resume continues"
    accelerator.print(f"{end}; see {chosen.out}")
    return step == last


def build_loss(chosen: argparse.Namespace) -> LanguageDrivenFusionLoss:
    given = (chosen.prompt, chosen.visible_text, chosen.infrared_text, chosen.opposite)
    texts = zip(("fused", "visible", "infrared", "opposite"), given, strict=True)
    return training.build_criterion(
        chosen.encoder,
        FusionObjective(**{role: text for role, text in texts if text}),
        regularizer=chosen.regularizer,
        vgg19=chosen.vgg19,
        num_patches=chosen.patches,
        regions=chosen.regions is not None,
        **{name: getattr(chosen, name) for name in WEIGHTS},
    )


def check_settings(settings: dict[str, Any], path: Path, *, resumed: bool) -> None:
    """Write the settings of a new training; those of a resumed one must be what they were."""
    now = {name: str(value) for name, value in settings.items()}
    if not resumed:
        with options.atomic_write(path) as temporary:
            temporary.write_text(json.dumps(now, indent=1), "utf-8")
        return
    before = json.loads(path.read_text("utf-8"))
    changed = ", ".join(name for name in now if before.get(name) != now[name])
    if changed:
        raise ValueError(
            f"--resume must have the settings in {path}, but others are given for {changed}; pass "
            "the same options, or choose another --out"
        )


def rate_factor(done: int, steps: int) -> float:
    """The factor of the learning rate after `done` of the steps.

    Of 100 epochs the paper warms up linearly over the first, and halves the rate at 50, 60, 70, 80
    and 90; here these are shares of a training of any length. (Its published code does neither.)
    """
    warm = min(1.0, (done + 1) / (steps / 100))
    return warm * 0.5 ** sum(done >= share * steps for share in (0.5, 0.6, 0.7, 0.8, 0.9))


def log_row(path: Path, row: dict[str, float]) -> None:
    """Append to the log, which nothing reads: a damaged one does no harm."""
    with open(path, "a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def states_in(out: Path) -> set[Path]:
    there = (path for path in out.glob("state-*") if re.fullmatch(r"state-\d{7,}", path.name))
    return {path for path in there if path.is_dir()}


def load_state(accelerator: Accelerator, state: Path) -> None:
    try:  # Accelerate goes on without random numbers if it cannot read them
        for path in {state / "random_states_0.pkl", *state.glob("random_states_*.pkl")}:
            load(path)
        accelerator.load_state(str(state))
    except Exception as error:  # damaged files raise nearly anything
        if options.remedy_for(error):
            raise
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{state} is damaged ({type(error).__name__}: {reason}); delete this folder to train "
            "anew, or put back a copy"
        ) from error


def save_state(accelerator: Accelerator, out: Path, step: int) -> None:
    """Write all that --resume needs into a folder that gets its name when it is complete."""
    unfinished, final = out / ".unfinished-state", out / f"state-{step:07d}"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(unfinished))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for path in unfinished.iterdir():
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
            shutil.rmtree(final, ignore_errors=True)
            unfinished.rename(final)
            for older in states_in(out) - {final}:
                shutil.rmtree(older)
    except Exception as error:  # libraries tell a full disk in many ways
        raise OSError(
            f"the state of step {step} cannot be written to {out} ({str(error).splitlines()[0]}); "
            "is the disk full? The last state is kept: mend it and pass --resume"
        ) from error


def save_samples(
    network: nn.Module, opened: Sequence[pairs.Pair], bank: EmbeddedFusionModel | None, path: Path
) -> None:
    """A sheet of three pairs, for at most four sentences, with the network as it is now."""
    device = next(network.parameters()).device
    shown = [opened[index] for index in pairs.spread(len(opened), 3)]
    columns = {kind: [getattr(pair, kind) for pair in shown] for kind in ("infrared", "visible")}
    told = {"fused": None}
    if bank:
        rows = pairs.spread(len(bank), 4)
        titles = [training.in_words(bank.objectives[row]) for row in rows]
        told = dict(zip(titles, bank.text_direction[rows], strict=True))
    for title, vector in told.items():
        fused = [training.fuse_with(network, pair, device, vector) for pair in shown]
        columns[title] = list(map(pairs.with_chroma_of, columns["visible"], fused))
    sheets.save_sheet(columns, sheets.salient_windows(shown), path)


def start_tracker(accelerator: Accelerator, name: str, out: Path) -> None:
    if not accelerator.log_with:  # Accelerate would go on without
        raise ValueError(f"--log-to {name} needs its package; pip install {name}")
    settings = {"wandb": {"name": out.resolve().name, "dir": str(out)}}
    project = "tensorboard" if name == "tensorboard" else "clip_fusion_loss"  # there it is a folder
    accelerator.init_trackers(project, init_kwargs=settings)


def show_samples(tracker: GeneralTracker, path: Path, step: int) -> None:
    """Give a sheet to a tracker; only these two take images in one way."""
    if tracker.name in ("tensorboard", "wandb"):
        with Image.open(path) as sheet:
            images = {"samples": np.asarray(sheet.convert("RGB"))[None]}
        order = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images(images, step=step, **order)


def ignore_interrupts(_: int) -> None:
    """Loading processes end with the training, which answers Ctrl-C and SIGHUP."""
    for number in (signal.SIGINT, HANGUP):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_on_request() -> Iterator[Event]:
    """The first Ctrl-C, SIGTERM or SIGHUP asks to stop after the step; a second stops at once."""
    request = Event()
    numbers = (signal.SIGINT, signal.SIGTERM, HANGUP)
    before = {number: signal.getsignal(number) for number in numbers}
    if before[HANGUP] == signal.SIG_IGN:  # as under nohup
        del before[HANGUP]

    def stop(number: int, _: Any) -> None:
        request.set()
        restore()
        if number == HANGUP != signal.SIGTERM:
            signal.signal(HANGUP, signal.SIG_IGN)  # shell and system may both send it
            mute_terminal()
        with suppress(OSError):  # without a standard error stream
            os.write(2, b"\nstopping after this step, then saving; again: at once\n")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield request
    finally:
        restore()


def mute_terminal() -> None:
    """Writing to a closed terminal, or a pipe into it, would end the training before it saves."""
    for stream in (1, 2):
        with suppress(OSError):
            if not stat.S_ISREG(os.fstat(stream).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


if __name__ == "__main__":
    main()
