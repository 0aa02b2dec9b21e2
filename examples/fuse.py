"""Fuse folders of image pairs with a trained network."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from tqdm import tqdm

from parts.command_line import choose_device, errors_as_messages, make_writable
from parts.data.images import save_image, with_chroma_of
from parts.data.pairs import LAYOUTS, UnusablePairError, find_pairs, read_pair
from parts.networks.catalogue import NETWORKS, PORTS
from parts.networks.fusing import fuse_with
from parts.training.checkpoints import load_network, load_weights

OVERVIEW = """\
Fuse folders of image pairs with a network that train.py has trained, or with published weights.

The fused image of DIR/ir/street.png and DIR/vi/street.png becomes OUT/street.png, in full
resolution and with the colours of the visible image. One pair is in memory at a time. Images that
are in OUT already are left alone, so an interrupted run goes on where it was; fuse with another
checkpoint into another folder.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with errors_as_messages("fuse"):
        fuse_folder(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=OVERVIEW, epilog=LAYOUTS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    trained = parser.add_mutually_exclusive_group(required=True).add_argument
    trained("--checkpoint", type=Path, metavar="FILE", help="written by train.py")
    trained("--weights", type=Path, metavar="FILE", help="a state_dict from elsewhere; --network")
    add("--network", choices=[*NETWORKS, *PORTS], help="what the --weights are of")
    add("--pairs", required=True, type=Path, metavar="DIR", help="images, laid out as shown below")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the fused images")
    add("--grey", action="store_true", help="leave out the colours of the visible image")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    options = parser.parse_args(arguments)
    if (options.weights is None) != (options.network is None):
        parser.error("--weights and --network go together")
    return options


def fuse_folder(options: argparse.Namespace) -> None:
    """Fuse what is not fused yet.

    Raises:
        OSError, ValueError: if nothing can be fused; single bad pairs are named and skipped.
    """
    device = choose_device(options.device)
    network = open_network(options).to(device)
    found, skipped = find_pairs(options.pairs)
    for item in skipped:
        print(f"skipped {item}", file=sys.stderr)
    if not found:
        raise ValueError(f"no pair of images in {options.pairs}\n{LAYOUTS}")
    out = make_writable(options.out)
    written = bad = 0
    for files in tqdm(found, desc="fusing", unit="pair", disable=None):
        path = out / f"{files.name}.png"
        if path.exists():
            continue
        try:
            pair = read_pair(files)
        except UnusablePairError as problem:
            tqdm.write(f"skipped {problem}", file=sys.stderr)
            bad += 1
            continue
        fused = fuse_with(network, pair, device)
        save_image(fused if options.grey else with_chroma_of(pair.visible, fused), path)
        written += 1
    print(f"{written} fused, {len(found) - written - bad} there already, {bad} unusable; see {out}")


def open_network(options: argparse.Namespace) -> nn.Module:
    if options.checkpoint is not None:
        return load_network(options.checkpoint)
    network, by_order = load_weights(options.weights, options.network)
    if by_order:
        print(
            f"note: {options.weights} names its layers otherwise than {options.network} here, and "
            "some have one shape; those were taken in the file's order. Look at a fused image",
            file=sys.stderr,
        )
    return network


if __name__ == "__main__":
    main()
