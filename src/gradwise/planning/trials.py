"""A short trial of several selections, each trained on from the present weights."""

import math
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import GradwiseError, RecipeError
from gradwise.methods.decision import Selection
from gradwise.numerics.sampling import evenly, interleaved
from gradwise.numerics.streams import stream, stream_seed
from gradwise.planning.context import RunContext, Samples
from gradwise.planning.phase import Parts, counts, interleaving
from gradwise.probing import Probe
from gradwise.ranks import on_first
from gradwise.signals.samples import rows_of

MIN_HALF = 4
"""Samples that a half must have to choose or to judge."""

EVENTS = {"select": "select_trial", "anneal": "trial"}
"""Names of the events, by section of the recipe."""


class Halves(NamedTuple):
    """Validation or target samples of a trial, in two parts."""

    rows: NDArray[np.int64]
    """Positions of those that choose, ascending."""
    choosing: Samples
    judging: Samples
    in_pool: int = 0
    """Samples left out of those that judge because they stand in the pool as well."""
    twins: int = 0
    """The same for copies of samples that choose."""

    def sentence(self, section: str) -> str | None:
        """The samples that judge less, and why; None if all of them judge."""
        if not self.in_pool + self.twins:
            return None
        return (
            f"{section}: {self.in_pool + self.twins} of the samples that would judge the trial are left out: "
            f"{self.in_pool} are in the training data, {self.twins} are copies of samples that choose; "
            f"{len(self.judging)} judge."
        )


def halves(
    samples: Samples, section: str = "anneal", *, of_target: bool = True, pool: Samples | None = None
) -> Halves:
    """The samples that choose, and those that judge, every subtask in proportion; the same for every seed.

    Args:
        samples: of a target, or else validation samples.
        section: of the recipe.
        of_target: which of the two.
        pool: samples that contenders choose from. What stands in it does not judge, and what chooses
            neither; if unset, nothing is left out.

    Raises:
        RecipeError: too few choose, or too few judge.
    """
    count, kind = len(samples), "target" if of_target else "validation"
    if count < 2 * MIN_HALF:
        raise RecipeError(
            f"{section}: a trial chooses by one half of the {kind} samples and judges by the other; {count} "
            f"are too few, give at least {2 * MIN_HALF}."
        )
    # Seed 0 whatever the run's: runs that differ in their seed only are judged by the same samples.
    mixed = stream(0, "trial halves").permutation(count)
    if samples.subtask is not None:
        mixed = mixed[interleaved(samples.subtask[mixed])]
    rows, others = np.sort(mixed[: count // 2]), np.sort(mixed[count // 2 :])
    half = Halves(rows, _some(samples, rows), _some(samples, others))
    if pool is None:
        return half
    in_pool, twins = (occurring(half.judging, each) for each in (pool, half.choosing))
    if not (in_pool | twins).any():
        return half
    # A judge that a contender trains on, or was chosen by, would decide for that contender.
    judging = others[~(in_pool | twins)]
    if len(judging) < MIN_HALF:
        raise RecipeError(
            f"{section}: a trial is judged by {kind} samples that are neither in the training data nor "
            f"copies of those that choose, and {len(judging)} of {len(others)} are such; give at "
            f"least {MIN_HALF} others."
        )
    judges = _some(samples, judging)
    return half._replace(judging=judges, in_pool=int(in_pool.sum()), twins=int((twins & ~in_pool).sum()))


def occurring(samples: Samples, others: Samples) -> NDArray[np.bool_]:
    """(N,) whether each sample has the tokens of one of the others; false where token ids are unknown."""
    from gradwise.data.pool import occurs_in

    datasets = (samples.dataset, others.dataset)
    columns = [getattr(dataset, "column_names", None) or () for dataset in datasets]
    if not all("input_ids" in names for names in columns):
        return np.zeros(len(samples), dtype=np.bool_)
    return occurs_in(*datasets)


def _some(samples: Samples, rows: NDArray[np.int64]) -> Samples:
    # Subtasks are those of the whole: in a half of it, small ones would become one.
    settled = None if samples.subtask is None else samples.subtask[rows]
    return Samples(rows_of(samples.dataset, rows), rows_of(samples.inputs, rows), samples.collate, settled)


def hold_trial(
    context: RunContext,
    selections: dict[str, list[Selection]],
    parts: Parts,
    judges: Samples,
    *,
    steps: int,
    most: int | None,
    step: int = 0,
    section: str = "anneal",
    spent: float = 0.0,
) -> tuple[str, float]:
    """The selection that `decided` prefers by the judges' losses, and the seconds that were taken; weights,
    optimizer and random states are as before. The first rank tries, and tells the others.

    Args:
        context: of the run.
        selections: of each contender, one for each part of the phase.
        parts: of the phase.
        judges: samples that chose nothing.
        steps: of each contender.
        most: judges that are used, evenly spread.
        step: optimizer steps done, for the record.
        section: of the recipe.
        spent: seconds that the contenders took to choose, where nothing else is charged with them.
    """
    start = time.perf_counter()
    # A single rank trains the contenders: on several, sums in another order could make another one the
    # winner, and each rank would follow its own.
    losses = on_first(lambda: _losses(context, selections, parts, judges, steps, most, step))
    kind = "validation" if context.target is None else "target"
    winner, means, noise = decided(losses, section, kind)
    seconds = time.perf_counter() - start
    before = losses["before"][np.isfinite(losses["before"])]
    context.record.event(
        EVENTS[section],
        step,
        spent + seconds,
        winner=winner,
        losses=means,
        before=float(f"{before.mean():.6g}"),
        noise=noise,
        judges=len(before),
        steps=steps,
    )
    shown = ", ".join(f"{name} {loss:.4f}" for name, loss in means.items())
    lower = any(loss < means[winner] for loss in means.values())
    beyond = "; those below it are so by less than a standard error" if lower else ""
    context.say(f"{section}: {winner} wins the trial of {steps} steps (held-out loss: {shown}{beyond}).")
    return winner, seconds


def decided(
    losses: dict[str, NDArray[np.float64]], section: str = "anneal", kind: str = "validation"
) -> tuple[str, dict[str, float], float | None]:
    """The winner, the mean loss after each contender, and the standard error of a difference from the one
    named first, the largest over contenders; None for a single judge.

    The first contender with a finite loss wins unless another's mean is lower by more than one standard error
    of their paired difference; of several such ones, the one with the lowest mean.

    Args:
        losses: (m,) of the judges after each contender, and `before`.
        section: of the recipe.
        kind: of the judges, target or validation samples.

    Raises:
        GradwiseError: no judge, or no mean, is finite.

    >>> decided({"before": np.ones(2), "a": np.full(2, np.nan), "b": np.array([0.5, 0.7])})[:2]
    ('b', {'a': nan, 'b': 0.6})
    """
    # A judge without a loss of its own (no label token) cannot judge any contender.
    sound = np.isfinite(losses["before"])
    if not sound.any():
        raise GradwiseError(
            f"{section}: none of the {len(sound)} {kind} samples that judge has a finite loss before the "
            "trial; give others."
        )
    losses = {name: each[sound] for name, each in losses.items()}
    # Rounded, so that a difference in the last bits of a sum decides nothing.
    means = {name: float(f"{each.mean():.6g}") for name, each in losses.items() if name != "before"}
    finite = [name for name, mean in means.items() if math.isfinite(mean)]
    if not finite:
        raise GradwiseError(
            f"{section}: no contender has a finite held-out loss after the trial; lower the learning rate."
        )
    first, judges = finite[0], len(losses["before"])
    if judges == 1:
        return min(finite, key=lambda name: means[name]), means, None
    # Paired by judge: samples differ in loss far more than contenders do.
    noise = {
        name: float(np.std(losses[first] - losses[name], ddof=1) / np.sqrt(judges)) for name in finite[1:]
    }
    # Within noise the first stays, or luck would replace it: random picks won that way, and ended far above
    # it (docs/log.md).
    better = [name for name in finite[1:] if means[first] - means[name] > noise[name]]
    winner = min([*better, first], key=lambda name: means[name])
    return winner, means, float(f"{max(noise.values(), default=0.0):.3g}")


def _losses(
    context: RunContext,
    selections: dict[str, list[Selection]],
    parts: Parts,
    judges: Samples,
    steps: int,
    most: int | None,
    step: int,
) -> dict[str, NDArray[np.float64]]:
    """(m,) of the judges, before and after each contender."""
    assert context.model is not None and context.make_optimizer is not None
    probe = Probe(
        context.model,
        # In a run that has begun the trial steps start from the moments that training has built up; an
        # optimizer without them would take first steps of full size.
        context.make_optimizer() if context.optimizer is None else context.optimizer,
        context.train.inputs,
        context.train.collate,
        target=judges.inputs,
        clip=context.max_grad_norm,
        batch_tokens=context.recipe.signals.batch_tokens,
        autocast=context.autocast,
        # By the step: a run that is resumed here has drawn other numbers before.
        seed=stream_seed(context.seed, "trial steps", step),
    )
    on = probe.target
    if most is not None and most < len(on):
        on = on[evenly(len(on), most)]
    runs = [_batches(context, each, parts, steps) for each in selections.values()]
    before, after = probe.runs(runs, on)
    return {"before": before, **dict(zip(selections, after, strict=True))}


def _batches(context: RunContext, picked: list[Selection], parts: Parts, steps: int) -> list[Any]:
    """Samples of each step: every pick of a part once in random order before any comes again, the parts by
    their shares. Picks without a label token teach nothing and are left out."""
    size, rng = context.in_run.batch_size, stream(context.seed, "trial order")
    entries = []
    for selection, count in zip(picked, counts(parts, steps * size), strict=True):
        learnt = selection.indices[context.train.label_tokens_of(selection.indices) > 0]
        if not learnt.size:
            raise RecipeError(
                "A contender of the trial picked only samples without a label token; give other data."
            )
        # Every pick is seen as often as any other but once, so that a contender gains nothing by a lucky
        # draw.
        rounds = -(-count // len(learnt))
        entries.append(
            np.concatenate([learnt[:0], *(rng.permutation(learnt) for _ in range(rounds))])[:count]
        )
    return np.split(np.concatenate(entries)[interleaving(parts, steps * size)], steps)
