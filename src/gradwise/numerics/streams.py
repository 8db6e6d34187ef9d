"""Random streams: each purpose draws its own numbers, which depend on the seed and share nothing with others.

numpy's `SeedSequence` ignores trailing zeros, so `default_rng([5, 7])` and `default_rng([5, 7, 0])` yield the
same numbers, and `default_rng(seed + 1)` repeats what another seed has drawn. Here the seed, the purpose and
the numbers are written down unambiguously and hashed with SHA-256. The hash is the generator's entropy.
"""

import hashlib
import operator

import numpy as np


def stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The random generator for one purpose; the same arguments give the same numbers on every machine.

    Args:
        seed: the run's seed, a non-negative integer of any size.
        purpose: what is drawn, such as "probe samples".
        numbers: integers of any sign that distinguish draws of one purpose, such as epoch and step.

    Raises:
        ValueError: the seed is negative.

    >>> stream(0, "example").integers(0, 100, 4).tolist()
    [96, 45, 61, 3]
    """
    # The bit generator is named because `default_rng` may change its own in a later numpy.
    return np.random.Generator(np.random.PCG64(int.from_bytes(_digest(seed, purpose, numbers))))


def stream_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed of 63 bits for a `torch.Generator`, with the arguments of `stream`.

    torch's generator on CPUs uses the lower 32 bits only. Two purposes then share numbers with a probability
    of 2^-32.

    >>> stream_seed(0, "example") != stream_seed(0, "example", 0)
    True
    """
    return int.from_bytes(_digest(seed, purpose, numbers)[:8]) >> 1


def _digest(seed: int, purpose: str, numbers: tuple[int, ...]) -> bytes:
    if seed < 0:
        raise ValueError(f"A seed must not be negative; found {seed}.")
    # Hexadecimal has no limit on length, and the purpose comes last: no two arguments give the same text.
    fields = [format(operator.index(number), "x") for number in (seed, len(numbers), *numbers)]
    return hashlib.sha256("|".join([*fields, purpose]).encode("utf-8", "surrogatepass")).digest()
