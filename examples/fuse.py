"""Fuse folders of image pairs with a trained network."""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from clip_fusion_loss import EmbeddedFusionModel
from parts.command_line import (
    Parser,
    add_option,
    choose_device,
    errors_as_messages,
    make_writable,
    progress,
    warnings_as_notes,
    whole_number,
)
from parts.data.images import note_in, save_image, with_chroma_of
from parts.data.pairs import LAYOUTS, PairFiles, UnusablePairError, find_pairs_aloud, read_pair
from parts.networks.catalogue import NETWORKS, PORTS
from parts.networks.fusing import fuse_with
from parts.training.checkpoints import load_checkpoint, load_weights, network_of
from parts.training.sentences import MOST_STEPS, told_by_folder

OVERVIEW = """\
Fuse a folder of image pairs with a network trained by train.py, or with published weights.

The fused image of DIR/ir/street.png and DIR/vi/street.png is written to OUT/street.png, in full
resolution and with the colours of the visible image. One pair is in memory at a time.

An interrupted run can be continued with the same command: images in OUT that were fused from the
same pairs with the same weights and options are kept. If OUT holds other images of these names,
nothing is fused; --overwrite replaces them.

A network of train.py --prompts needs a sentence, from the training or a new one: --prompt
"a dark image" writes to OUT/a-dark-image/; repeat it for more sentences, one folder each. --blend A
B STEPS interpolates between two sentences, with one folder per step, named by the share of B in
percent: OUT/A_B/000/ to OUT/A_B/100/.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with errors_as_messages("fuse"):
        fuse_folder(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(OVERVIEW, LAYOUTS)
    trained = partial(add_option, parser.add_mutually_exclusive_group(required=True))
    trained("--checkpoint", "written by train.py", type=Path)
    trained("--weights", "a published state_dict; needs --network", type=Path)
    add = partial(add_option, parser)
    add("--network", "the network of --weights", choices=[*NETWORKS, *PORTS])
    add("--pairs", required=True)
    add("--out", required=True)
    add("--prompt", " for one folder each")
    add("--blend", "interpolate between two sentences", nargs=3, metavar=("A", "B", "STEPS"))
    add("--encoder", ", used for new sentences (default: that of the training)", default=None)
    add("--grey", "write grey images, without the colours of the visible ones", action="store_true")
    add(
        "--overwrite",
        "replace images that were fused from other pairs or with other weights or options",
        action="store_true",
    )
    add("--device")
    options = parser.parse_args(arguments)
    if (options.weights is None) != (options.network is None):
        parser.error("--weights and --network must be given together; add the missing one")
    if options.blend:
        try:
            options.blend[2] = whole_number(options.blend[2], minimum=2)
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --blend: STEPS {error}")
        if options.blend[2] > MOST_STEPS:
            parser.error(f"argument --blend: STEPS must be at most {MOST_STEPS}")
    return options


def fuse_folder(options: argparse.Namespace) -> None:
    """Fuse the pairs that are not fused yet; unusable pairs are named and skipped.

    Raises:
        OSError, ValueError: nothing can be fused; or --out holds images of these names that were
            made from other pairs or with other weights or options.
    """
    device = choose_device(options.device)
    with warnings_as_notes():
        networks = open_networks(options)
    found = find_pairs_aloud(options.pairs)
    out = make_writable(options.out)
    left = []
    for folder, network in networks.items():
        method = identity(network, options)
        those = still_to_fuse(found, out / folder, method, options.overwrite)
        left += [(files, network.to(device), out / folder, method) for files in those]
    written = 0
    for files, network, folder, method in progress(left, "fusing", "image", keep=True):
        try:
            pair = read_pair(files)
            fused = fuse_with(network, pair, device)
        except UnusablePairError as problem:
            tqdm.write(f"skipped {problem}", file=sys.stderr)
        except RuntimeError as error:  # such as out of memory; the next pair may be smaller
            reason = str(error).splitlines()[0]
            tqdm.write(f"skipped {files.visible}: cannot be fused: {reason}", file=sys.stderr)
        else:
            image = fused if options.grey else with_chroma_of(pair.visible, fused)
            save_image(image, target(folder, files), note(method, files))
            written += 1
    there, bad = len(networks) * len(found) - len(left), len(left) - written
    print(f"{written} fused, {there} there already, {bad} unusable; see {out}")
    if written + there == 0:
        raise ValueError(f"no pair of {options.pairs} could be fused; the reasons are above")


def target(out: Path, files: PairFiles) -> Path:
    return out / f"{files.name}.png"


def still_to_fuse(
    found: Sequence[PairFiles], out: Path, method: str, overwrite: bool
) -> list[PairFiles]:
    """The pairs whose fused image is not in `out`.

    Raises:
        ValueError: `out` has images of these names that were made from other pairs or with another
            `method`, and `overwrite` is False.
    """
    left = []
    others = []
    for files in found:
        path = target(out, files)
        exists = path.exists()
        if not exists or note_in(path) != note(method, files):
            left.append(files)
            others += [path] if exists else []
    if others and not overwrite:
        raise ValueError(
            f"--out {out} holds {len(others)} images, such as {others[0]}, that were not "
            "fused from these pairs with these weights and options; choose another --out, or "
            "pass --overwrite to replace them"
        )
    return left


def identity(network: nn.Module, options: argparse.Namespace) -> str:
    """A digest of the network, its weights and the options that change the output."""
    digest = hashlib.sha256(f"{options.network} {options.grey} {network}".encode())
    for name, weights in sorted(network.state_dict().items()):
        digest.update(f"{name} {weights.dtype} {tuple(weights.shape)}".encode())
        digest.update(weights.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def note(method: str, files: PairFiles) -> str:
    """The text stored in a fused image: a digest of the network and of both sources."""
    digest = hashlib.sha256(method.encode())
    for path in files[1:]:
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"")
    return f"fused by {digest.hexdigest()}"


def open_networks(options: argparse.Namespace) -> dict[str, nn.Module]:
    """The networks by their folder in --out, which is "" for a network without sentences."""
    if options.checkpoint is None:
        check_sentences(options, None)
        return {"": open_weights(options)}
    checkpoint = load_checkpoint(options.checkpoint)
    bank = checkpoint.bank
    check_sentences(options, bank)
    network = network_of(checkpoint)
    if bank is None:
        return {"": network}
    encoder = options.encoder or checkpoint.encoder
    return told_by_folder(network, options.prompt or [], options.blend, bank, encoder)


def check_sentences(options: argparse.Namespace, bank: EmbeddedFusionModel | None) -> None:
    """Raise a ValueError unless sentences are given exactly if the network takes them.

    It does if there is a `bank` of the sentences that it was trained for.
    """
    source = options.checkpoint or options.weights
    asked = [name for name in ("prompt", "blend", "encoder") if getattr(options, name)]
    if bank is None and asked:
        raise ValueError(
            f"--{asked[0]} is for a network that was trained with train.py --prompts, got "
            f"{source}, which takes no sentence; leave out --{asked[0]}, or train such a network"
        )
    if bank is not None and not (options.prompt or options.blend):
        example = bank.objectives[0].fused[0]
        raise ValueError(
            f"--prompt or --blend must be given, got neither for {source}, which was "
            f'trained for {len(bank)} sentences; pass for example --prompt "{example}"'
        )


def open_weights(options: argparse.Namespace) -> nn.Module:
    network, by_order = load_weights(options.weights, options.network)
    if by_order:
        print(
            f"note: the layers in {options.weights} have other names than those of "
            f"{options.network}; layers of equal shape were matched in the order of the file. "
            "Check a fused image",
            file=sys.stderr,
        )
    return network


if __name__ == "__main__":
    main()
