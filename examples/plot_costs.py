"""Draw the curves that `benchmark.py --curve ... --json FILE` has measured."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from command_line import errors_as_messages
from files import written_whole

LABELS = {
    "patches": "patches an image",
    "batch": "images a step",
    "size": "side of the images in pixels",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a column for each")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="picture to write")
    options = parser.parse_args(arguments)
    with errors_as_messages("plot_costs"):
        curves = [json.loads(path.read_text(encoding="utf-8")) for path in options.files]
        save_costs(curves, options.out)
    print(options.out)


def save_costs(curves: Sequence[dict], path: Path) -> None:
    """Write seconds a step above and gigabytes below, a column for each curve.

    Raises:
        ValueError: a curve is not what the benchmark writes.
    """
    figure = Figure(figsize=(3.6 * len(curves), 4.6), dpi=160, layout="constrained")
    panels = figure.subplots(2, len(curves), squeeze=False, sharex="col")
    for (time, memory), curve in zip(panels.T, curves, strict=True):
        try:
            label = LABELS[curve["curve"]]
            gigabytes = [peak / 1e9 for peak in curve["peak_memory"]]
            for axes, costs in ((time, curve["seconds"]), (memory, gigabytes)):
                axes.plot(curve["value"], costs, marker="o")
                axes.set_ylim(0, 1.15 * max(costs))
                axes.set_xlim(left=0)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a curve by benchmark.py --curve --json: {error}") from error
        memory.set_xlabel(label)
    panels[0, 0].set_ylabel("seconds a step")
    panels[1, 0].set_ylabel("peak memory, GB")
    with written_whole(path) as temporary:
        figure.savefig(temporary)


if __name__ == "__main__":
    main()
