"""Fuse a folder of image pairs with a network trained by train.py, or with published weights.

The fused image of DIR/ir/street.png and DIR/vi/street.png is written to OUT/street.png, in full
resolution and with the colours of the visible image. Images that are in OUT already stay, so an
interrupted run can be continued.

A network of train.py --prompts needs a sentence, from the training or a new one: --prompt
"a dark image" writes to OUT/a-dark-image/. --blend A B STEPS interpolates between two sentences,
with a folder per step, named by the share of B in percent: OUT/A_B/000/ to OUT/A_B/100/.

--region MASK "a bright image" gives a part of the image a sentence of its own; where several
overlap, the last counts. MASK is an image of the size of the pairs, white in the region; a folder
with such a mask of the same name for each pair; or hot, for the warmest part of the infrared image.

--weights takes a state_dict of PyTorch: DenseFuse's densefuse_gray.model with --network
densefuse-port, U2Fusion's model.pth with u2fusion-port. Checkpoints of TensorFlow are not read.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while PyTorch is loaded

import torch
from torch import Tensor
from tqdm import tqdm

import masks
import options
import pairs
from clip_fusion_loss import EmbeddedFusionModel, FusionObjective
from networks import NETWORKS, PORTS
from networks.weights import Trained, load_published, load_trained
from training import fuse_with, in_words, load_clip

#: A fused image with a higher mean, of sources with a lower one, is said.
NEARLY_WHITE = 240


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options.new_parser(__doc__, pairs.LAYOUT)
    add = partial(options.add, parser)
    trained = parser.add_mutually_exclusive_group(required=True)
    options.add(trained, "--checkpoint", "the --out of train.py", type=Path, metavar="DIR")
    options.add(trained, "--weights", "published weights; need --network", type=Path)
    add("--network", "the network of --weights", choices=[*NETWORKS, *PORTS])
    add("--out", required=True)
    add("--prompt", "; repeat it for one folder each", default=[])
    add("--opposite", ", for each sentence; those of the training have their own")
    add("--blend", "interpolate between two sentences", nargs=3, metavar=("A", "B", "STEPS"))
    text = "a sentence for a region: hot, or an image or a folder of images, white in the region"
    add("--region", text, [], action="append", nargs=2, metavar=("MASK", "TEXT"))
    add("--encoder", "; for new sentences (default: that of the training)")
    add("--grey", "write grey images", action="store_true")
    add("--overwrite", "replace images in --out", action="store_true")
    add("--device")
    chosen = parser.parse_args(arguments)
    if (chosen.weights is None) != (chosen.network is None):
        parser.error("--weights and --network must be given together; add the missing one")
    if chosen.blend and chosen.blend[2] not in map(str, range(2, 102)):
        parser.error(f"argument --blend: STEPS must be from 2 to 101, got {chosen.blend[2]}")
    return chosen


@options.errors_as_messages("fuse")
def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parse(arguments)
    device = options.choose_device(chosen.device)
    folders = pairs.folders_of(chosen.pairs, chosen.infrared, chosen.visible)
    with options.warnings_as_notes():
        if chosen.checkpoint is None:
            trained = Trained(load_published(chosen.weights, chosen.network), None, "")
        else:
            trained = load_trained(chosen.checkpoint)
        vectors_of = vectors_by_folder(chosen, trained)
    for folder in vectors_of:
        pairs.keep_apart(chosen.out / folder, folders)
    network = trained.network.to(device)
    found = pairs.find_pairs(folders)
    options.make_writable(chosen.out)
    jobs = [
        (files, told, chosen.out / folder / f"{files.name}.png")
        for folder, told in vectors_of.items()
        for files in found
    ]
    sources = {path.resolve() for files in found for path in files[1:]}
    links = [str(path) for *_, path in jobs if path.resolve() in sources]
    if links:
        raise ValueError(f"{options.some(links)}: links to sources; choose another --out")
    left = [job for job in jobs if chosen.overwrite or not job[2].exists()]
    written = 0
    for files, vectors, path in options.progress(left, "fusing", "image"):
        try:
            pair = pairs.read_pair(files)
            regions = labels_of(pair, [mask for mask, _ in chosen.region])
            fused = fuse_with(network, pair, device, vectors, regions=regions)
        except pairs.UnusableImageError as problem:
            tqdm.write(f"skipped {problem}", file=sys.stderr)
            continue
        except RuntimeError as error:  # such as out of memory; the next pair may be smaller
            reason = options.remedy_for(error) or str(error).splitlines()[0]
            tqdm.write(f"skipped {files.visible}: cannot be fused: {reason}", file=sys.stderr)
            continue
        level, *of_sources = (image.float().mean() for image in (fused, *pair[1:]))
        if chosen.weights and level > NEARLY_WHITE >= max(of_sources):
            options.note(
                f"fused images are nearly white: are these the weights of --network "
                f"{chosen.network}? There are also {', '.join(PORTS)}"
            )
        image = fused if chosen.grey else pairs.with_chroma_of(pair.visible, fused)
        pairs.save_image(image, path)
        written += 1
    there, bad = len(jobs) - len(left), len(left) - written
    print(f"{written} fused, {there} there already, {bad} unusable; see {chosen.out}")
    if written + there == 0:
        raise ValueError("no pair could be fused; the reasons are above")


def vectors_by_folder(chosen: argparse.Namespace, trained: Trained) -> dict[str, Tensor | None]:
    """The text directions to fuse with by their folder in --out; {"": None} without sentences.

    They are (D,), or (1 + regions, D) with regions.
    """
    bank = trained.sentences
    takers = ("prompt", "opposite", "blend", "region", "encoder")
    asked = [name for name in takers if getattr(chosen, name)]
    if bank is None:
        if asked:
            raise ValueError(
                f"--{asked[0]} is for a network of train.py --prompts; leave it out for "
                f"{chosen.checkpoint or chosen.weights}, which takes no sentence"
            )
        return {"": None}
    if not (chosen.prompt or chosen.blend):
        raise ValueError(
            f"--prompt or --blend must be given for {chosen.checkpoint}, which was trained for "
            f'{len(bank)} sentences; for example --prompt "{bank.objectives[0].fused[0]}"'
        )
    opposite = tuple(chosen.opposite or ())
    known = list(zip(bank.objectives, bank.text_direction, strict=True))
    known.sort(key=lambda both: not both[0].opposite)  # of two with one text that without
    vectors = {
        " ".join(objective.fused): vector
        for objective, vector in known
        if not opposite or objective.opposite == opposite
    }
    ends = chosen.blend[:2] if chosen.blend else []
    inside = [text for _, text in chosen.region]
    texts = dict.fromkeys([*chosen.prompt, *ends, *inside])
    new = [text for text in texts if text not in vectors]
    if new:  # only for these the CLIP of the training is loaded
        clip = load_clip(chosen.encoder or trained.encoder)
        bank.check_encoder(clip)
        first = replace(bank.objectives[0], opposite=opposite)
        embedded = EmbeddedFusionModel([replace(first, fused=text) for text in new], clip)
        vectors |= zip(new, embedded.text_direction, strict=True)

    def name(text: str) -> str:
        return options.readable_name(in_words(FusionObjective(text, opposite=opposite)))

    by_folder: dict[str, Tensor | None] = {name(text): vectors[text] for text in chosen.prompt}
    if chosen.blend:
        folder = "_".join(map(name, ends))
        for share in torch.linspace(0, 1, int(chosen.blend[2])).tolist():
            vector = torch.lerp(vectors[ends[0]], vectors[ends[1]], share)
            by_folder[f"{folder}/{round(100 * share):03d}"] = vector
    if not chosen.region:
        return by_folder
    regions = "".join(f"_{name(f'{mask} {text}')}" for mask, text in chosen.region)
    with_regions: dict[str, Tensor | None] = {}
    for folder, vector in by_folder.items():
        first, slash, step = folder.partition("/")
        told = torch.stack([vector, *(vectors[text] for text in inside)])
        with_regions[f"{first}{regions}{slash}{step}"] = told
    return with_regions


def labels_of(pair: pairs.Pair, region_masks: Sequence[str]) -> Tensor | None:
    """(1, H, W): number n in the n-th region, 0 elsewhere; None without regions."""
    if not region_masks:
        return None
    labels = torch.zeros_like(pair.infrared, dtype=torch.int64)
    for label, mask in enumerate(region_masks, 1):
        region = masks.region_of(pair, mask)
        if region is None:
            options.note(f"{pair.name}: nothing in the infrared image is hot; all is --prompt")
        else:
            labels[0][region] = label
    return labels


if __name__ == "__main__":
    main()
