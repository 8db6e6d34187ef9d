"""Whether the picks are likely to help, on validation samples that did not choose them.

The validation samples are halved. Each half chooses, and the other judges what it would not see in a run: the
decrease expected of the best step along the mean gradient of the picks,

    (b.g)^2 / (2 g.H g),   b and H the other half's mean gradient and second moments,

beside that of random picks and of the highest cosines. Its root, with the sign of b.g, is a mean over samples
and so has a standard error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.numerics.rows import Rows
from gradwise.numerics.streams import stream

MIN_VALIDATION = 8
"""Validation samples below which halves say nothing."""

DRAWS = 8
"""Random selections that the picks are compared with."""

NOISE = 0.7
"""Standard errors by which picks may be below random ones. Of nine targets, picks towards the only one that
they made worse were 0.8 to 1.0 below, the others at most 0.6 (docs/log.md)."""

Values = NDArray[np.float64]
Choose = Callable[[Values], NDArray[np.int64]]
"""Places of the picks, by some validation gradients (m, k)."""


@dataclass(frozen=True)
class HeldOutCheck:
    """Predicted effect of three selections: the mean of (z.g) / sqrt(g.H g) over the samples that judge."""

    samples: int
    picks: float
    cosine: float
    random: float
    noise: float
    """Standard error of `picks` less `random`."""
    cosine_noise: float
    """The same for `cosine`."""

    @property
    def use(self) -> str:
        """`picks`, unless these are worse than random picks beyond noise: then the better of the others."""
        if self.picks >= self.random - NOISE * self.noise:
            return "picks"
        return "cosine" if self.cosine >= self.random - NOISE * self.cosine_noise else "random"

    def details(self) -> dict[str, Any]:
        """Plain values for the record."""
        names = ("picks", "cosine", "random", "noise")
        return {"samples": self.samples, "use": self.use} | {
            name: float(f"{getattr(self, name):.4g}") for name in names
        }

    def sentence(self) -> str | None:
        """What a user should know; None where the picks are used."""
        if self.use == "picks":
            return None
        return (
            f"anneal: on {self.samples} validation samples that chose nothing, the picks of direct are "
            f"predicted to lower the loss less than random ones (predicted effect {self.picks:.3g} against "
            f"{self.random:.3g}, standard error {self.noise:.2g})"
        )


def held_out_check(
    choose: Choose, by_cosine: Choose, gradients: Rows, z: Values, count: int, seed: int
) -> HeldOutCheck | None:
    """The check; None for too few validation samples.

    Args:
        choose, by_cosine: select by validation gradients.
        gradients: of the pool, as long as they are in training.
        z: (M, k) validation gradients.
        count: number of random picks.
        seed: of the halves and the random picks.
    """
    if len(z) < MIN_VALIDATION:
        return None
    rng = stream(seed, "held-out check")
    mixed = rng.permutation(len(z))
    halves = mixed[: len(z) // 2], mixed[len(z) // 2 :]
    effects: list[Values] = []
    for half, other in (halves, halves[::-1]):
        judges = z[other]
        chosen = [_effect(gradients, places, judges) for places in (choose(z[half]), by_cosine(z[half]))]
        draws = [
            # Several draws, since a single one is as noisy as the picks that it is to be compared with.
            _effect(gradients, rng.choice(len(gradients), count, replace=False), judges)
            for _ in range(DRAWS)
        ]
        # Both halves judge once, so that every validation sample counts and none has chosen what it judges.
        effects.append(np.stack([*chosen, np.mean(draws, axis=0)]))
    picks, cosine, random = np.concatenate(effects, axis=1)
    noises = [float(np.std(each - random, ddof=1) / np.sqrt(len(z))) for each in (picks, cosine)]
    means = (float(each.mean()) for each in (picks, cosine, random))
    return HeldOutCheck(len(z), *means, *noises)


def _effect(gradients: Rows, places: NDArray[np.int64], judges: Values) -> Values:
    """(m,) of each judging sample: z.g / sqrt(g.H g) for the picks' mean gradient g."""
    # g is the picks' sum; its length cancels in z.g / sqrt(g.H g), so that no mean is needed.
    along = judges @ gradients.sum_of(np.sort(places))
    curved = np.sqrt(np.mean(along**2))
    return along / curved if curved > 0 else along
