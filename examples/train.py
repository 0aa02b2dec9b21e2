"""Train a fusion network with the language-driven loss, its original one, or both."""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clip_fusion_loss import (
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
    StructureLoss,
    VGGMaxFeatureLoss,
)
from parts.command_line import (
    errors_as_messages,
    make_writable,
    number,
    warnings_as_notes,
    whole_number,
)
from parts.data.crops import Crops
from parts.data.pairs import LAYOUTS, PairFolder, open_pairs
from parts.losses.combined import Objective, OriginalLoss
from parts.losses.language import CHECKPOINT_MODEL, ENCODERS, load_clip
from parts.losses.original import ReconstructionLoss, SwinFusionLoss, U2FusionLoss, VGGInformation
from parts.networks.catalogue import NETWORKS
from parts.training.checkpoints import Checkpoint, load_checkpoint
from parts.training.processes import Processes, StopRequest, joined_processes, stop_on_request
from parts.training.trainer import AMP_TYPES, CHECKPOINT, LOG, Plan, Trainer

OVERVIEW = f"""\
Train a fusion network with the language-driven loss, its original one, or both.

What comes out lies in the --out folder:

  {CHECKPOINT}  the network, for fuse.py, and all that --resume needs
  {LOG}        every term of the loss, step by step
  samples/       a few pairs, fused now and then in full size

Ctrl-C saves and stops; the same command with --resume goes on, with the very numbers of a run
that was never stopped. Several GPUs or machines: start it with torchrun, see the examples.
"""

EXAMPLES = f"""\
examples:
  python examples/train.py --network densefuse --pairs DIR --out runs/densefuse --steps 300 \\
      --crop 96 --batch 4 --patches 8
  python examples/train.py --network swinfusion --pairs DIR --out runs/both --loss both \\
      --original-weight 0.1 --encoder {CHECKPOINT_MODEL}/openai
  torchrun --nproc-per-node 4 examples/train.py @examples/ldfusion_recipe.txt --pairs DIR \\
      --batch 4 --out runs/ldfusion

A word @FILE stands for the options in that file. Those that come later win.

{LAYOUTS}
"""

#: Options that a resumed training may change: they decide where and how long, not which numbers.
#: The rest, and what follows from these, is compared with the checkpoint.
FREE_OPTIONS = {
    "pairs",
    "max_pairs",
    "out",
    "resume",
    "device",
    "workers",
    "epochs",
    "steps",
    "save_every",
    "sample_every",
    "batch",
    "accumulate",
    "encoder",
    "vgg16",
    "vgg19",
    "prompt",
    "visible_text",
    "infrared_text",
    "objective",
}
WEIGHTS = ("direction_weight", "patch_weight", "similarity_weight", "regularizer_weight")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with errors_as_messages("train"), joined_processes(options.device) as processes:
        trainer = prepare(options, processes)
        with stop_on_request() as stop:
            finished = run(trainer, stop)
    if not finished:
        sys.exit(130)


class Parser(argparse.ArgumentParser):
    """Reads @FILE with any number of options a line, and comments."""

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return shlex.split(arg_line, comments=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=OVERVIEW,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        fromfile_prefix_chars="@",
    )
    shown = "(default: %(default)s)"
    natural = partial(whole_number, minimum=0)

    add = parser.add_argument_group("what to train").add_argument
    add("--network", required=True, choices=NETWORKS)
    add("--pairs", required=True, type=Path, metavar="DIR", help="images, laid out as shown below")
    add("--max-pairs", type=whole_number, default=sys.maxsize, metavar="N", help="use at most N")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    add("--resume", action="store_true", help="go on with the training in --out, if there is one")

    add = parser.add_argument_group("what to strive for").add_argument
    add(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="what the fused image should be; repeat it for an ensemble "
        f"(default: {FusionObjective().fused[0]})",
    )
    add("--visible-text", action="append", metavar="TEXT", help="what the visible image is")
    add("--infrared-text", action="append", metavar="TEXT", help="what the infrared image is")
    add(
        "--objective",
        type=Path,
        metavar="FILE",
        help='the texts as JSON: {"fused": TEXT or [TEXT, ...], "visible": ..., "infrared": ...}',
    )

    add = parser.add_argument_group("loss").add_argument
    add("--loss", choices=("language", "original", "both"), default="language", help=shown)
    add("--language-weight", type=number, default=1.0, metavar="W", help=f"in both {shown}")
    add("--original-weight", type=number, default=1.0, metavar="W", help=f"in both {shown}")
    add(
        "--encoder",
        default="tiny",
        help=f"the CLIP that judges; for research name a real one: {ENCODERS} {shown}",
    )
    add("--patches", type=whole_number, metavar="N", help="of a crop (default: suits the encoder)")
    for name in WEIGHTS:
        option = f"--{name.replace('_', '-')}"
        add(option, type=number, metavar="W", help="(default: suits the encoder)")
    add(
        "--regularizer",
        choices=("vgg", "structure", "intensity", "none"),
        help="(default: structure with the tiny encoder, or else vgg, the paper's)",
    )
    add("--vgg19", type=Path, metavar="FILE", help="weights of vgg, else they are downloaded")
    add("--vgg16", type=Path, metavar="FILE", help="likewise, for the original loss of u2fusion")
    add(
        "--reconstruction-epochs",
        type=number,
        default=0.0,
        metavar="N",
        help=f"first train densefuse to reconstruct single images {shown}",
    )

    add = parser.add_argument_group("data").add_argument
    add(
        "--crop",
        type=partial(whole_number, minimum=32),
        default=224,
        metavar="PIXELS",
        help=f"side; smaller images are enlarged to it {shown}",
    )
    add("--crops-per-pair", type=whole_number, default=10, metavar="N", help=f"an epoch {shown}")
    add(
        "--augment",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="turn, shift, zoom and shear the crops a little (default: do)",
    )
    add(
        "--noise",
        type=number,
        default=0.03,
        metavar="STD",
        help=f"added to the network's inputs, not to what the loss sees {shown}",
    )
    add(
        "--swap-inputs",
        action="store_true",
        help="exchange the network's inputs at random, as u2fusion does originally",
    )

    add = parser.add_argument_group("schedule").add_argument
    add("--optimizer", choices=("adam", "rmsprop"), default="adam", help=shown)
    add("--rate", type=number, default=5e-4, metavar="R", help=f"learning rate {shown}")
    add("--batch", type=whole_number, default=16, metavar="N", help=f"of each process {shown}")
    add(
        "--accumulate",
        type=whole_number,
        default=1,
        metavar="N",
        help=f"batches whose gradients make a step {shown}",
    )
    add("--epochs", type=number, default=100.0, metavar="N", help=shown)
    add("--steps", type=whole_number, metavar="N", help="end after N steps whatever the epoch")
    add("--warmup-epochs", type=number, default=1.0, metavar="N", help=f"rise linearly {shown}")
    add(
        "--milestones",
        type=number,
        nargs="*",
        default=[50.0, 60.0, 70.0, 80.0, 90.0],
        metavar="EPOCH",
        help="halve the rate there (default: 50 60 70 80 90)",
    )
    add("--seed", type=natural, default=0, metavar="N", help=f"decides all chance {shown}")

    add = parser.add_argument_group("machine").add_argument
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add("--amp", choices=AMP_TYPES, help="mixed precision (default: float32)")
    add("--workers", type=natural, default=0, metavar="N", help=f"loading processes {shown}")
    add("--save-every", type=natural, default=500, metavar="STEPS", help=f"0: never {shown}")
    add("--sample-every", type=natural, default=500, metavar="STEPS", help=f"likewise {shown}")
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace, processes: Processes) -> Trainer:
    """Turn the options into a trainer, resumed if that is asked for.

    Raises:
        OSError, ValueError: if that cannot be done; the message says why.
    """
    out = make_writable(options.out)
    checkpoint = processes.share(lambda: find_checkpoint(out, options.resume))
    pairs = load_pairs(options, processes)
    torch.manual_seed(options.seed)
    network = NETWORKS[options.network]()
    generator = torch.Generator()
    with warnings_as_notes():
        objective = build_objective(options, network, generator).to(processes.device)
    crops = Crops(
        pairs, options.crop, options.crops_per_pair, augment=options.augment, seed=options.seed
    )
    global_batch = options.batch * options.accumulate * processes.world
    settings = {name: value for name, value in vars(options).items() if name not in FREE_OPTIONS}
    settings |= {"number of pairs": len(pairs), "global batch": global_batch}
    if objective.language is not None:
        texts = asdict(objective.language.objective)
        settings |= {role: list(texts[role]) for role in texts}
        settings["encoder"] = objective.language.encoder.fingerprint
    plan = Plan(
        network=options.network,
        settings=settings,
        out=out,
        steps=options.steps or math.ceil(options.epochs * crops.epoch_size / global_batch),
        batch=options.batch,
        parts=options.accumulate,
        rate=options.rate,
        warmup=options.warmup_epochs,
        milestones=options.milestones,
        reconstruction=options.reconstruction_epochs,
        seed=options.seed,
        amp=options.amp,
        workers=options.workers,
        save_every=options.save_every,
        sample_every=options.sample_every,
    )
    # The step sets the rate; RMSProp and Adam otherwise have PyTorch's defaults, as the paper has.
    optimizer_class = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}[options.optimizer]
    optimizer = optimizer_class(network.parameters(), lr=options.rate)
    trainer = Trainer(plan, objective, optimizer, crops, processes, generator)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    return trainer


def find_checkpoint(out: Path, resume: bool) -> Checkpoint | None:
    """The checkpoint in `out`, or None.

    Raises:
        ValueError: if there is one, but nobody asked to resume, or it cannot be read.
    """
    path = out / CHECKPOINT
    if not path.is_file():
        return None
    if not resume:
        raise ValueError(
            f"{out} holds a training already; pass --resume to go on with it, or another --out"
        )
    return load_checkpoint(path)


def run(trainer: Trainer, stop: StopRequest) -> bool:
    """Train, and tell the user; returns whether it came to the end."""
    plan, processes = trainer.plan, trainer.processes
    if processes.is_first:
        print(
            f"{plan.network} on {len(trainer.crops.pairs)} pairs; {processes.world} x "
            f"{processes.device.type}; steps {trainer.step} to {plan.steps}"
        )
    finished = trainer.run(stop)
    if processes.is_first:
        end = "finished" if finished else f"stopped after step {trainer.step}, go on with --resume"
        print(f"{end}; see {plan.out}")
    return finished


def load_pairs(options: argparse.Namespace, processes: Processes) -> PairFolder:
    pairs, skipped = open_pairs(options.pairs, options.max_pairs)
    if processes.is_first:
        for item in skipped:
            print(f"skipped {item}", file=sys.stderr)
    return pairs


def build_objective(
    options: argparse.Namespace, network: nn.Module, generator: torch.Generator
) -> Objective:
    language = original = None
    original_weight = options.original_weight
    if options.loss != "original":
        language = build_language(options, generator)
    if options.loss != "language":
        original = build_original(options)
    if options.reconstruction_epochs > 0:
        if options.network != "densefuse":
            raise ValueError("--reconstruction-epochs is for densefuse")
        if original is None:
            original, original_weight = ReconstructionLoss(), 0.0
    return Objective(
        network,
        language,
        original,
        language_weight=options.language_weight,
        original_weight=original_weight,
        noise=options.noise,
        swap=options.swap_inputs,
    )


def build_language(
    options: argparse.Namespace, generator: torch.Generator
) -> LanguageDrivenFusionLoss:
    tiny = options.encoder == "tiny"
    chosen: dict[str, Any] = {
        name: getattr(options, name) for name in WEIGHTS if getattr(options, name) is not None
    }
    chosen["generator"] = generator
    if options.patches is not None:
        chosen["num_patches"] = options.patches
    if not tiny:
        chosen["encoder"] = load_clip(options.encoder)
    regularizer = options.regularizer or ("structure" if tiny else "vgg")
    if regularizer == "vgg":
        chosen["regularizer"] = VGGMaxFeatureLoss(options.vgg19)
    elif regularizer == "intensity":
        chosen["regularizer"] = IntensityGradientLoss()
    elif regularizer == "none":
        chosen["regularizer"] = None
    elif not tiny:  # which has its own
        chosen["regularizer"] = StructureLoss()
    build = LanguageDrivenFusionLoss.tiny if tiny else LanguageDrivenFusionLoss
    return build(read_objective(options), **chosen)


def build_original(options: argparse.Namespace) -> OriginalLoss:
    if options.network == "densefuse":
        return ReconstructionLoss()
    if options.network == "u2fusion":
        return U2FusionLoss(VGGInformation(options.vgg16))
    if options.network == "swinfusion":
        return SwinFusionLoss()
    raise ValueError(f"the original loss of {options.network} is --loss language")


def read_objective(options: argparse.Namespace) -> FusionObjective:
    """The texts of the file, if there is one, with those of the command line in their stead."""
    texts: dict[str, Any] = {}
    if options.objective is not None:
        try:
            texts = dict(json.loads(options.objective.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"--objective {options.objective} is not as --help says: {error}"
            ) from error
    unknown = texts.keys() - {field.name for field in fields(FusionObjective)}
    if unknown:
        raise ValueError(f"--objective {options.objective} has unknown roles: {sorted(unknown)}")
    said = {
        "fused": options.prompt,
        "visible": options.visible_text,
        "infrared": options.infrared_text,
    }
    texts |= {role: value for role, value in said.items() if value}
    try:
        return FusionObjective(**texts)
    except TypeError as error:
        raise ValueError(f"--objective {options.objective}: {error}") from error


if __name__ == "__main__":
    main()
