"""Write the pairs that the network in this folder was trained on: TNO's and rendered scenes.

    python examples/data/many/scenes.py OUT

OUT/ir and OUT/vi then hold 100 scenes of the renderer that the bundled CLIP was trained with, and
the five pairs of TNO ten times each, as a training draws its crops evenly from all pairs.
"""

import shutil
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2]
sys.path += [str(EXAMPLES), str(EXAMPLES.parent / "docs")]

import torch  # noqa: E402

from pairs import TNO, save_image, to_8bit  # noqa: E402
from tiny_clip.renderer import render_pairs  # noqa: E402

SCENES, SIDE, COPIES = 100, 320, 10


def main(out: Path) -> None:
    for number in range(SCENES):
        pair = render_pairs(1, size=SIDE, seed=number)
        for folder, images in zip(("vi", "ir"), pair, strict=True):
            save_image(to_8bit(images[0]), out / folder / f"scene-{number:03d}.png")
    for path in TNO.glob("*/*.png"):
        for copy in range(COPIES):
            shutil.copy(path, out / path.parent.name / f"tno-{path.stem}-{copy}.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
