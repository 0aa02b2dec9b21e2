"""Train a fusion network with the language-driven loss, its original one, or both."""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from threading import Event

import torch
from torch import nn

from clip_fusion_loss import FusionObjective
from parts.command_line import (
    Parser,
    add_option,
    errors_as_messages,
    make_writable,
    natural,
    number,
    warnings_as_notes,
    whole_number,
)
from parts.data.crops import Crops
from parts.data.pairs import LAYOUTS, PairFolder, open_pairs
from parts.losses.combined import NetworkWithLosses, OriginalLoss
from parts.losses.language import CHECKPOINT_MODEL, REGULARIZERS, build_criterion
from parts.losses.original import ReconstructionLoss, SwinFusionLoss, U2FusionLoss, VGGInformation
from parts.networks.catalogue import NETWORKS
from parts.networks.conditioned import Conditioned
from parts.training.checkpoints import Checkpoint, load_checkpoint
from parts.training.drawn_sentences import DrawnSentences
from parts.training.processes import Processes, joined_processes, stop_on_request
from parts.training.sentences import read_sentences
from parts.training.trainer import CHECKPOINT, LOG, Plan, Trainer

OVERVIEW = f"""\
Train a fusion network with the language-driven loss, its original one, or both.

The --out folder then holds:

  {CHECKPOINT}  the network, for fuse.py, and the state for --resume
  {LOG}        the terms of the loss per step
  samples/       a few pairs, fused during the training in full size

Ctrl-C saves and stops; the same command with --resume continues with the same numbers as a run
without interruption. For several GPUs or machines start it with torchrun, see the examples.
"""

EXAMPLES = f"""\
examples:
  python examples/train.py --network densefuse --pairs DIR --out runs/densefuse --steps 300 \\
      --crop 96 --batch 4 --patches 8
  python examples/train.py --network swinfusion --pairs DIR --out runs/both --loss both \\
      --original-weight 0.1 --encoder {CHECKPOINT_MODEL}/openai
  python examples/train.py --network densefuse --pairs DIR --out runs/any --prompts sentences.txt
  torchrun --nproc-per-node 4 examples/train.py @examples/ldfusion_recipe.txt --pairs DIR \\
      --batch 4 --out runs/ldfusion

@FILE inserts the options in that file. If an option is given twice, the last one counts.

{LAYOUTS}
"""

#: Options that a resumed training may change. All others are compared with the checkpoint, and so
#: are the texts, the encoder's weights and the global batch that follow from these.
FREE_OPTIONS = {
    *("pairs", "max_pairs", "out", "resume", "device", "workers", "epochs", "steps", "batch"),
    *("accumulate", "save_every", "sample_every", "encoder", "vgg16", "vgg19", "prompt"),
    *("visible_text", "infrared_text", "objective", "prompts"),
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


class RecipeParser(Parser):
    """Reads @FILE with any number of options per line, and comments."""

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return shlex.split(arg_line, comments=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = RecipeParser(OVERVIEW, EXAMPLES, fromfile_prefix_chars="@")

    add = partial(add_option, parser.add_argument_group("what to train"))
    add("--network", required=True, choices=NETWORKS)
    add("--pairs", required=True)
    add("--max-pairs", " (default: all)")
    add("--out", required=True)
    add("--resume", "continue the training in --out, if there is one", action="store_true")

    add = partial(add_option, parser.add_argument_group("objective"))
    add("--prompt", f" for an ensemble (default: {FusionObjective().fused[0]})")
    add(
        "--prompts",
        "train one network for all sentences of this file, one per line; fuse.py --prompt chooses "
        "one. `2.5 | a dark image` is drawn 2.5 times as often as others; # begins a comment line",
        type=Path,
    )
    add("--visible-text", "description of the visible image", action="append", metavar="TEXT")
    add("--infrared-text", "description of the infrared image", action="append", metavar="TEXT")
    add(
        "--objective",
        'the texts as JSON: {"fused": TEXT or [TEXT, ...], "visible": ..., "infrared": ...}',
        type=Path,
    )

    add = partial(add_option, parser.add_argument_group("loss"))
    add("--loss", choices=("language", "original", "both"), default="language")
    add("--language-weight", "weight with --loss both", type=number, default=1.0)
    add("--original-weight", "weight with --loss both", type=number, default=1.0)
    add("--encoder", "; for research use a real one")
    add("--patches", "patches per crop (default: depends on the encoder)", type=whole_number)
    for name in WEIGHTS:
        option = f"--{name.replace('_', '-')}"
        add(option, "(default: depends on the encoder)", type=number)
    add(
        "--regularizer",
        "(default: structure with --encoder tiny, otherwise vgg, the paper's)",
        choices=REGULARIZERS,
    )
    add("--vgg19", "weights for --regularizer vgg (default: download)", type=Path)
    add("--vgg16", "weights for the original loss of u2fusion (default: download)", type=Path)
    add(
        "--reconstruction-epochs",
        "epochs in which densefuse first learns to reconstruct single images",
        type=number,
        default=0.0,
    )

    add = partial(add_option, parser.add_argument_group("data"))
    add(
        "--crop",
        "side of the crops; smaller images are enlarged",
        type=partial(whole_number, minimum=32),
        default=224,
        metavar="PIXELS",
    )
    add("--crops-per-pair", "crops of each pair per epoch", type=whole_number, default=10)
    add(
        "--augment",
        "rotate, shift, zoom and shear the crops a little (default: on)",
        action=argparse.BooleanOptionalAction,
        default=True,
    )
    add(
        "--noise",
        "standard deviation of the noise on the network's inputs; the loss gets images without it",
        type=number,
        default=0.03,
    )
    add(
        "--swap-inputs",
        "swap the network's inputs at random, as the original u2fusion does",
        action="store_true",
    )

    add = partial(add_option, parser.add_argument_group("schedule"))
    add("--optimizer", choices=("adam", "rmsprop"), default="adam")
    add("--rate", "learning rate", type=number, default=5e-4)
    add("--batch", "crops per batch of each process", type=whole_number, default=16)
    add(
        "--max-norm",
        "scale larger gradients down to this norm; steadies a training with --prompts "
        "(default: no limit)",
        type=number,
    )
    add("--accumulate", "batches per step (gradient accumulation)", type=whole_number, default=1)
    add("--epochs", type=number, default=100.0)
    add("--steps", ", instead of --epochs (default: as many as the epochs have)")
    add("--warmup-epochs", "length of the linear warm-up", type=number, default=1.0)
    add(
        "--milestones",
        "epochs at which the learning rate is halved (default: 50 60 70 80 90)",
        type=number,
        nargs="*",
        default=[50.0, 60.0, 70.0, 80.0, 90.0],
        metavar="EPOCH",
    )
    add("--seed")

    add = partial(add_option, parser.add_argument_group("machine"))
    add("--device")
    add("--amp")
    add("--workers", "data loading processes", type=natural, default=0)
    add(
        "--save-every",
        "steps between checkpoints; 0: only at the end",
        type=natural,
        default=500,
        metavar="STEPS",
    )
    add(
        "--sample-every",
        "steps between sample images; 0: only at the end",
        type=natural,
        default=500,
        metavar="STEPS",
    )
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace, processes: Processes) -> Trainer:
    """Make a trainer from the options; with --resume it continues from the checkpoint.

    Raises:
        OSError, ValueError: an option or a file is wrong; the message says what to do.
    """
    sentences = sentences_to_draw(options)
    out = make_writable(options.out)
    checkpoint = processes.share(lambda: find_checkpoint(out, options.resume))
    pairs = load_pairs(options, processes)
    torch.manual_seed(options.seed)
    network = NETWORKS[options.network]()
    generator = torch.Generator()
    with warnings_as_notes():
        combined = combine(options, network, generator, sentences).to(processes.device)
    crops = Crops(
        pairs, options.crop, options.crops_per_pair, augment=options.augment, seed=options.seed
    )
    global_batch = options.batch * options.accumulate * processes.world
    settings = {name: value for name, value in vars(options).items() if name not in FREE_OPTIONS}
    settings |= {"number of pairs": len(pairs), "global batch": global_batch}
    language = combined.language
    if isinstance(language, DrawnSentences):
        language = language.criterion
    if language is not None:
        texts = asdict(language.objective)
        settings |= {role: list(texts[role]) for role in texts}
        settings["encoder"] = language.encoder.fingerprint
    if sentences:
        settings["fused"] = [f"{weight} | {sentence}" for sentence, weight in sentences.items()]
    steps = options.steps or math.ceil(options.epochs * crops.epoch_size / global_batch)
    named = {f.name: getattr(options, f.name) for f in fields(Plan) if hasattr(options, f.name)}
    plan = Plan(**named | {"settings": settings, "steps": steps})
    # Each step sets the learning rate; other parameters are PyTorch's defaults, as in the paper.
    optimizer_class = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}[options.optimizer]
    optimizer = optimizer_class(combined.network.parameters(), lr=options.rate)
    trainer = Trainer(plan, combined, optimizer, crops, processes, generator)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    return trainer


def find_checkpoint(out: Path, resume: bool) -> Checkpoint | None:
    """The checkpoint in `out`, or None.

    Raises:
        ValueError: there is one but `resume` is False, or it cannot be read.
    """
    path = out / CHECKPOINT
    if not path.is_file():
        return None
    if not resume:
        raise ValueError(
            f"--out must be a folder without a training, got {out}; pass --resume to continue the "
            "training there, or another --out"
        )
    return load_checkpoint(path)


def run(trainer: Trainer, stop: Event) -> bool:
    """Train and print the progress; returns whether all steps are done."""
    plan, processes = trainer.plan, trainer.processes
    if processes.is_first:
        print(
            f"{plan.network} on {len(trainer.crops.pairs)} pairs; {processes.world} x "
            f"{processes.device.type}; steps {trainer.step} to {plan.steps}"
        )
    finished = trainer.run(stop)
    if processes.is_first:
        end = "finished" if finished else f"stopped after step {trainer.step}; --resume continues"
        print(f"{end}; see {plan.out}")
    return finished


def load_pairs(options: argparse.Namespace, processes: Processes) -> PairFolder:
    pairs, skipped = open_pairs(options.pairs, options.max_pairs or sys.maxsize)
    if processes.is_first:
        for item in skipped:
            print(f"skipped {item}", file=sys.stderr)
    return pairs


def combine(
    options: argparse.Namespace,
    network: nn.Module,
    generator: torch.Generator,
    sentences: Mapping[str, float],
) -> NetworkWithLosses:
    """The network with its losses; with `sentences`, a network that takes one as an input."""
    language = original = None
    original_weight = options.original_weight
    if options.loss != "original":
        suited = "structure" if options.encoder == "tiny" else "vgg"
        language = build_criterion(
            options.encoder,
            generator,
            read_objective(options),
            regularizer=options.regularizer or suited,
            vgg19=options.vgg19,
            num_patches=options.patches,
            **{name: getattr(options, name) for name in WEIGHTS},
        )
    if sentences:
        bank = language.embed(list(sentences))
        told = Conditioned(network, bank.text_direction.shape[1])
        network = language = DrawnSentences(told, language, bank, list(sentences.values()))
    if options.loss != "language":
        original = build_original(options)
    if options.reconstruction_epochs > 0:
        if options.network != "densefuse":
            raise ValueError(
                f"--reconstruction-epochs must be 0 for {options.network}, got "
                f"{options.reconstruction_epochs:g}; it is only for densefuse"
            )
        if original is None:
            original, original_weight = ReconstructionLoss(), 0.0
    return NetworkWithLosses(
        network,
        language,
        original,
        language_weight=options.language_weight,
        original_weight=original_weight,
        noise=options.noise,
        swap=options.swap_inputs,
    )


def sentences_to_draw(options: argparse.Namespace) -> dict[str, float]:
    """The sentences of --prompts with their weights; empty without that option.

    Raises:
        OSError, ValueError: the file is wrong, or another option excludes --prompts.
    """
    if options.prompts is None:
        return {}
    if options.prompt:
        raise ValueError(
            f"--prompts must be used without --prompt, got {options.prompt[0]!r} and the file "
            f"{options.prompts}; write the sentence into the file"
        )
    if options.loss == "original":
        raise ValueError(
            "--prompts must be used with --loss language or both, got --loss original, which does "
            "not depend on a sentence"
        )
    if options.network == "densefuse" and options.loss == "both":
        raise ValueError(
            "--prompts with densefuse must be used with --loss language, got --loss both: its "
            "original loss reconstructs single images, which the sentences do not describe"
        )
    if options.reconstruction_epochs > 0:
        raise ValueError(
            "--prompts must be used without --reconstruction-epochs, got "
            f"{options.reconstruction_epochs:g}: the sentences do not describe single images"
        )
    return read_sentences(options.prompts)


def read_objective(options: argparse.Namespace) -> FusionObjective:
    """The texts of the command line; those that it does not give come from --objective."""
    said = {"fused": options.prompt, "visible": options.visible_text}
    said["infrared"] = options.infrared_text
    said = {role: texts for role, texts in said.items() if texts}
    if options.objective is None:
        return FusionObjective(**said)
    try:
        texts = dict(json.loads(options.objective.read_text("utf-8")))
        if options.prompts and "fused" in texts:
            raise ValueError("`fused` must be left out with --prompts, which replaces it")
        return FusionObjective(**texts | said)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--objective {options.objective}, see --help: {error}") from error


def build_original(options: argparse.Namespace) -> OriginalLoss:
    if options.network == "densefuse":
        return ReconstructionLoss()
    if options.network == "u2fusion":
        return U2FusionLoss(VGGInformation(options.vgg16))
    if options.network == "swinfusion":
        return SwinFusionLoss()
    raise ValueError(
        f"--loss must be language for {options.network}, got {options.loss}: the language-driven "
        "loss is its original one"
    )


if __name__ == "__main__":
    main()
