"""The paper's learning rate: a linear warm-up, then halved a few times."""

from collections.abc import Sequence


def learning_rate_factor(
    done: float, step: float, *, warmup: float, milestones: Sequence[float]
) -> float:
    """The factor of the learning rate in a step; all times are in epochs.

    The paper warms up linearly over the first epoch and halves the rate at epochs 50, 60, 70, 80
    and 90. Its published code does neither: the warm-up raises an error, and if that is fixed it
    counts iterations. PyTorch's schedulers are not used: LambdaLR would need this function and
    state of its own, LinearLR and MultiStepLR count whole steps and accumulate rounding errors.

    Args:
        done: epochs completed before the step.
        step: epochs in one step, of all processes together.
        warmup: length of the warm-up; 0 for none.
        milestones: epochs at which the rate is halved.
    """
    risen = min(1.0, (done + step) / warmup) if warmup > 0 else 1.0
    return risen * 0.5 ** sum(done >= milestone for milestone in milestones)
