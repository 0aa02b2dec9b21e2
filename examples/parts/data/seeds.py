"""Seeds for single crops and steps, so that a resumed run draws the same random numbers.

Each crop and each step has its own seed; none depends on numbers drawn before.
"""

import numpy as np
import torch


def seed_for(*numbers: int) -> int:
    """A 63-bit seed from whole numbers >= 0, such as (seed, step, rank)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_for(*numbers: int) -> torch.Generator:
    """A CPU generator seeded with `seed_for(*numbers)`."""
    return torch.Generator().manual_seed(seed_for(*numbers))
