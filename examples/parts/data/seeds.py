"""Random numbers that depend on what they are for and on nothing that happened before.

A run that is killed and resumed draws the same numbers as one that was not, because nothing
random has a history: every crop and every step gets a seed of its own.
"""

import numpy as np
import torch


def seed_for(*numbers: int) -> int:
    """A well-mixed 63-bit seed made from whole numbers >= 0, such as (seed, step, rank)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_for(*numbers: int) -> torch.Generator:
    """A CPU generator seeded with `seed_for(*numbers)`."""
    return torch.Generator().manual_seed(seed_for(*numbers))
