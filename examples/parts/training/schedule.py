"""The paper's learning rate: a linear warm-up, then halved a few times."""

from collections.abc import Sequence


def learning_rate_factor(
    done: float, step: float, *, warmup: float, milestones: Sequence[float]
) -> float:
    """What to multiply the learning rate with in a step; all times are in epochs.

    The paper warms up linearly over the first epoch and halves at epochs 50, 60, 70, 80 and 90.
    (Its published code does neither: the warm-up fails, and once mended counts iterations.)
    A function of the step alone: PyTorch's LambdaLR would need it too, and its state besides;
    LinearLR and MultiStepLR count whole steps, and round on the way.

    Args:
        done: epochs behind us when the step begins.
        step: epochs that the step itself takes, by all processes together.
        warmup: length of the warm-up; 0 is none.
        milestones: when to halve.
    """
    risen = min(1.0, (done + step) / warmup) if warmup > 0 else 1.0
    return risen * 0.5 ** sum(done >= milestone for milestone in milestones)
