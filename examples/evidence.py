"""Train networks for several sentences, evaluate them and write the results page.

All figures on the page come from runs of this program. Finished runs are kept in the --out folder
and are not repeated, so it can be interrupted at any time. With the embedded CLIP and all sections
it takes some hours on two CPU cores.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from clip_fusion_loss import LanguageDrivenFusionLoss, StructureLoss
from parts.command_line import (
    Parser,
    add_option,
    choose_device,
    errors_as_messages,
    make_writable,
    warnings_as_notes,
    whole_number,
)
from parts.data.default_pairs import choose_pairs
from parts.data.pairs import LAYOUTS
from parts.files import written_whole
from parts.losses.language import load_clip
from parts.measuring.trials import BRIGHTNESS, LAYOUT, Bench, Trial
from parts.pages.ablation import ablation
from parts.pages.calibration import calibration
from parts.pages.one_network import one_network
from parts.pages.peers import peers
from parts.pages.ranking import ranking
from parts.pages.shown import SHOWN_PAIRS
from parts.pages.steering import steering, summary
from parts.pages.sweep import sweep
from parts.training.short import BATCH_SIZE, CROP_SIDE

SECTIONS: dict[str, Callable[[Bench, Trial, Sequence[int], Path], str]] = {
    "steering": steering,
    "ablation": ablation,
    "sweep": sweep,
    "calibration": calibration,
    "ranking": ranking,
    "one_network": one_network,
    "peers": peers,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__, LAYOUTS)
    add = partial(add_option, parser)
    add("--pairs", "; every second pair is used for testing", required=True)
    add("--show", f"{SHOWN_PAIRS} more pairs, for the pictures", type=Path, metavar="DIR")
    add(
        "--peers",
        "fused images of published methods, SET/METHOD/NAME.png with the names of the test pairs "
        "or of those of --show; SET-clamp holds the same without stretched contrast",
        type=Path,
        metavar="DIR",
    )
    add("--credit", "source and license of the images in the pictures", metavar="TEXT")
    add("--out", " and for finished runs", default=Path("evidence"))
    add("--page", "results page to write", type=Path, default=Path("docs/results.md"))
    add("--encoder")
    add("--seeds", "number of seeds per setting", type=whole_number, default=3)
    add("--steps", default=150)
    add("--max-pairs", ", for training, and as many for testing", default=25)
    add("--amp", choices=["bf16"])
    add("--sections", "sections of the page", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    add("--device")
    options = parser.parse_args(arguments)
    with errors_as_messages("evidence"):
        write_page(options)


def write_page(options: argparse.Namespace) -> None:
    device = choose_device(options.device)
    encoder = load_clip(options.encoder)
    pairs = choose_pairs(options.pairs, 2 * options.max_pairs)
    shown = choose_pairs(options.show, SHOWN_PAIRS) if options.show else []
    folder = make_writable(options.out) / encoder.name.replace("/", "-")
    halves = [[pairs[i] for i in range(first, len(pairs), 2)] for first in (0, 1)]
    names = options.pairs.name, options.show.name if options.show else ""
    bench = Bench(encoder, halves[0], halves[1], shown, folder, device, names, options.peers)
    like = LanguageDrivenFusionLoss.tiny
    if options.encoder != "tiny":
        like = partial(LanguageDrivenFusionLoss, encoder=encoder, regularizer=StructureLoss())
    base = Trial(steps=options.steps, amp=options.amp is not None).weighted_like(like())
    seeds = range(options.seeds)
    with warnings_as_notes():
        parts = [
            SECTIONS[name](bench, base, seeds, options.page.parent) for name in options.sections
        ]
        opening = summary(bench, base, seeds) if "steering" in options.sections else ""
    introductory = introduction(bench, base, seeds, options)
    text = "\n\n".join(filter(None, ["# Results", opening, introductory, *parts])) + "\n"
    with written_whole(options.page) as temporary:
        temporary.write_text(text, "utf-8")
    print(options.page)


def introduction(
    bench: Bench, base: Trial, seeds: Sequence[int], options: argparse.Namespace
) -> str:
    precision = "bfloat16" if base.amp else "float32"
    credit = f"\n\nImages in the pictures: {options.credit}." if options.credit else ""
    first, second = bench.names
    again = f", and on {len(bench.shown)} pairs of {second}" if bench.shown else ""
    known = ""
    if bench.encoder.name == "tiny":
        known = " The `tiny` CLIP itself was trained on crops of four TNO pairs."
    return f"""These are demonstrations with the `{bench.encoder.name}` CLIP. What a real CLIP does
to the images has not been measured, as its weights were not available where this page was made.
`--encoder ViT-B-32-quickgelu/openai` makes the same page with them.

`examples/evidence.py` wrote this page and all figures in it. The network is DenseFuse, which
learns to correct the average of its sources: {base.steps} steps of {BATCH_SIZE} crops of
{CROP_SIDE} pixels, in {precision}, from {len(bench.training)} pairs of {first}, with Adam and a
learning rate that falls from {base.learning_rate:g} to 0. It was tested on {len(bench.test)} other
pairs of {first}{again}.{known}

Figures are means over {len(seeds)} seeds, followed by half of their range (±). "No language" is
the same training without the direction and patch terms. The measures are those of
`examples/evaluate.py`. `{BRIGHTNESS}` is the mean grey level. `{LAYOUT}` is the correlation with
the maximum of the sources after averaging over 16 x 16 pixels: near 1, the fused image shows the
same scene. EN, SD, SF and AG also reward noise and embossing: compare them with SSIM and
Qabf, and look at the pictures.{credit}"""


if __name__ == "__main__":
    main()
