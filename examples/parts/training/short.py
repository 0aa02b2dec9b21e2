"""A short training in one process and without files, for quickstart.py and evidence.py.

`trainer` holds the long training of train.py, which can be stopped and resumed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clip_fusion_loss import LanguageDrivenFusionLoss
from parts.command_line import progress
from parts.data.images import luminance
from parts.data.pairs import Pair
from parts.training.processes import Processes
from parts.training.step import TrainingStep

#: The crops have the input size of the embedded CLIP, so they are not resized.
BATCH_SIZE = 3
CROP_SIDE = 96
LEARNING_RATE = 1.5e-3


def train(
    network: nn.Module,
    criterion: LanguageDrivenFusionLoss,
    pairs: Sequence[Pair],
    *,
    steps: int,
    seed: int,
    device: torch.device,
    title: str = "training",
    amp: bool = False,
    learning_rate: float = LEARNING_RATE,
    batch_size: int | None = None,
    max_norm: float | None = None,
) -> dict[str, list[float]]:
    """Train `network(visible, infrared) -> fused` in place; returns every step's loss terms.

    `seed` determines the crops; with `amp` the network computes in bfloat16. The learning rate
    falls from `learning_rate` to 0 on a cosine. A step has `batch_size` crops, by default
    `BATCH_SIZE`. Gradients with a norm above `max_norm` are scaled down to it.

    Raises:
        ValueError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = (random_crops(pairs, generator, batch_size) for _ in range(steps))
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    # Runs that end at a small rate differ less from seed to seed than any setting does.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def loss(visible: Tensor, infrared: Tensor) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            fused = network(visible, infrared)
        return criterion.terms(fused, visible, infrared)._asdict()

    take_step = TrainingStep(loss, optimizer, Processes(0, 1, device), max_norm=max_norm)
    history: dict[str, list[float]] = {}
    network.train()
    bar = progress(range(steps), title, "step", keep=True)
    for _ in bar:
        values, _ = take_step(batches)
        schedule.step()
        for name, value in values.items():
            history.setdefault(name, []).append(value)
        shown = ("total", "kept") if values.get("patch") else ("total",)
        bar.set_postfix({name: values[name] for name in shown}, refresh=False)
    return history


def random_crops(
    pairs: Sequence[Pair], generator: torch.Generator, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """A batch of grey crops, visible and infrared, each (N, 1, S, S) in [0, 1].

    S is `CROP_SIDE`, or less where one of the images drawn is smaller.
    """
    drawn = [pairs[_below(len(pairs), generator)] for _ in range(count or BATCH_SIZE)]
    side = min(CROP_SIDE, *(min(pair.infrared.shape[1:]) for pair in drawn))
    visible, infrared = [], []
    for pair in drawn:
        height, width = pair.infrared.shape[1:]
        top, left = _below(height - side + 1, generator), _below(width - side + 1, generator)
        window = (slice(None), slice(top, top + side), slice(left, left + side))
        visible.append(luminance(pair.visible[window]))
        infrared.append(luminance(pair.infrared[window]))
    return torch.stack(visible), torch.stack(infrared)


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))
