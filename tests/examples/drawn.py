"""Small image pairs that the tests of training share."""

import json

import numpy as np
import torch
from PIL import Image

from clip_fusion_loss import FrozenCLIP
from parts.data.pairs import Pair
from parts.measuring.baselines import average
from parts.measuring.many_sentences import measure
from parts.measuring.trials import Bench


def draw_pairs(count=3, size=(48, 56)):
    """Pairs with some structure: noise on a ramp."""
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 120, size[1])
    images = (random.integers(0, 130, size=(2, count, *size)) + ramp).astype(np.uint8)
    return [
        Pair(f"scene{i}", *(torch.from_numpy(image[i])[None] for image in images))
        for i in range(count)
    ]


def save_pairs(pairs, folder):
    """Write grey pairs as the examples read them."""
    for pair in pairs:
        for name, image in (("vi", pair.visible), ("ir", pair.infrared)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(image[0].numpy()).save(folder / name / f"{pair.name}.png")
    return folder


def save_users_pairs(folder):
    """A colour pair, a 16-bit pair of another size and file type, and one that does not match."""
    random = np.random.default_rng(0)
    for name, suffix, infrared, visible in (
        (
            "colour",
            "png",
            random.integers(256, size=(70, 90)),
            random.integers(256, size=(70, 90, 3)),
        ),
        (
            "deep",
            "tif",
            random.integers(2**16, size=(130, 50)),
            random.integers(256, size=(130, 50)),
        ),
        (
            "unequal",
            "png",
            random.integers(256, size=(64, 64)),
            random.integers(256, size=(64, 65)),
        ),
    ):
        for modality, values in (("Thermal", infrared), ("RGB", visible)):
            path = folder / modality / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            depth = np.uint16 if values.max() > 255 else np.uint8
            Image.fromarray(values.astype(depth)).save(path)
    return folder


def make_bench(folder):
    pairs = draw_pairs(3)
    cpu = torch.device("cpu")
    return Bench(FrozenCLIP.tiny(), pairs[:2], pairs[1:], pairs[:1], folder / "runs", cpu)


def pretend_training(bench, trial):
    """Leave behind what a training does, of average images."""
    folder = bench.folder / trial.key
    content = {}
    for part, title in (("test", "{:03d}"), ("shown", "shown_{}")):
        images = [average(pair) for pair in getattr(bench, part)]
        for index, image in enumerate(images):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(folder / f"{title.format(index)}.png")
        content[part] = bench.measure(images, part)
    (folder / "metrics.json").write_text(json.dumps(content))


def pretend_many(bench, trial):
    """What a training for many sentences finds, of average images."""
    for index, pair in enumerate(bench.shown):
        for number in range(len(trial.sentences)):
            path = bench.folder / trial.key / f"{number}_shown_{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(average(pair)[0].numpy()).save(path)
    rows = [measure(average(pair)) for pair in bench.test]
    return {
        "told": dict.fromkeys((*trial.sentences, *trial.held_out), rows),
        "blends": [[rows] * trial.blend_steps for _ in trial.blends],
    }
