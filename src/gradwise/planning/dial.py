"""GRACE's dial in a run: speeds are measured once, and what they afford follows from them."""

import math
import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from gradwise.errors import RecipeError
from gradwise.methods.grace import Grace
from gradwise.methods.grace.costs import Forecast, Size, Speeds, forecast
from gradwise.methods.grace.method import REFRESHING
from gradwise.numerics.sampling import evenly
from gradwise.planning.pool import label_tokens_of
from gradwise.planning.speed import MORE, measuring_speed
from gradwise.precision import autocast_of, autocasting
from gradwise.ranks import on_first
from gradwise.recipe import SignalSettings
from gradwise.settings import default_of
from gradwise.signals import Signals
from gradwise.training.arguments import decay_steps

COUNTED = 200
"""Samples whose label tokens are counted, to know how long they are."""

TIMED_STEPS = 3
"""Training passes that are timed, after one that is not."""

WIDTH = 2048
"""Rows of the product that is timed."""

DIGITS = 4
"""Significant digits of a measured speed in the recipe, which people read; more would be noise."""


class Settled(NamedTuple):
    """What a run decides by."""

    grace: Grace
    """The settings, with what was measured on this machine filled in."""
    forecast: Forecast

    def __str__(self) -> str:
        """What is going to be spent, where that is more than the default allows, and what has no effect."""
        grace, found, said = self.grace, self.forecast, []
        if found.share is not None and grace.overhead is None and found.share > 1.005 * grace.dial:
            said.append(
                f"that is more than the default overhead of {grace.dial:.0%}, for the recipe settles it; "
                "give select.overhead to bound it"
            )
        given = [name for name in REFRESHING if getattr(grace, name) != default_of(Grace, name)]
        if not found.every and given:
            said.append(f"without a refresh select.{given[0]} has no effect; give more overhead")
        return "; ".join([str(found), *said]) + "."


def settled(
    trainer: Any, grace: Grace, settings: SignalSettings, *, seed: int, last: float | None = None
) -> Settled:
    """How many samples the run scores, how often it selects again, and what that is expected to cost.

    Speeds are measured only where something follows from them and the settings have none: the training steps
    that are timed took a third of what deciding took on a model of 135 M parameters.

    Args:
        trainer: its model and data are timed.
        grace: the settings to be obeyed.
        settings: the recipe's `signals`.
        seed: of the projection of gradients.
        last: share of the steps that `anneal` decides about.

    Raises:
        RecipeError: when an overhead was asked for that cannot be kept to.
    """
    size = run_size(trainer, grace)
    if last is not None:
        size = replace(size, steps=size.steps - decay_steps(last, size.steps))
    speeds = grace.speeds
    candidates = None if grace.candidates is None else _most(grace.candidates, size.pool)
    if speeds is None and grace.overhead is None and candidates is not None and grace.refresh_every == 0:
        found = Forecast.once(candidates, size.steps)
    else:
        if speeds is None:
            # Every rank measures, since training steps are taken together; the first one's speeds count.
            mine = measured(trainer, grace, settings, seed=seed)
            speeds = on_first(lambda: mine)
        chosen = {"candidates": candidates, "every": grace.refresh_every, "anchors": grace.anchors}
        found = forecast(size, speeds, grace.dial, **chosen)
    if grace.overhead is not None and found.share is not None and found.share > grace.overhead:
        raise RecipeError(
            f"select.overhead is {grace.overhead:g}, but scoring {found.candidates:,} samples"
            + (f" and some of them again every {found.every} steps" if found.every else "")
            + f" is expected to take {found.share:.2g} of the training time; give a larger overhead, fewer "
            "candidates, rarer refreshes, or a smaller model under signals.model."
        )
    return Settled(replace(grace, speeds=speeds, search=grace.searches(found.candidates)), found)


def run_size(trainer: Any, grace: Grace) -> Size:
    """Samples, steps and batch of a run before anything is selected."""
    args, pool = trainer.args, len(trainer.train_dataset)
    batch = trainer._train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.max_steps > 0:
        return Size(pool, args.max_steps, batch)
    if grace.tokens is None:
        picks = grace.size(pool)
    else:
        tokens = label_tokens_of(trainer, evenly(pool, COUNTED))
        picks = min(pool, max(1, round(grace.tokens / max(1.0, float(tokens.mean())))))
    return Size(pool, math.ceil(args.num_train_epochs * math.ceil(picks / batch)), batch)


def measured(trainer: Any, grace: Grace, settings: SignalSettings, *, seed: int) -> Speeds:
    """Speeds of this machine, on samples from all over the pool."""
    rehearse(grace)
    places = evenly(len(trainer.train_dataset), COUNTED)
    learnt = places[label_tokens_of(trainer, places) > 0]
    rows = learnt[evenly(len(learnt), MORE)] if learnt.size else places[:MORE]
    scoring = measuring_speed(trainer, rows, grace.needs, settings, seed=seed)
    width = getattr(trainer.model.config, "hidden_size", 512)
    seconds = {
        "train": _training(trainer, rows),
        "score": scoring.each,
        "startup": scoring.begin,
        "compare": _comparing(width),
    }
    return Speeds(**{name: float(f"{value:.{DIGITS}g}") for name, value in seconds.items()})


def rehearse(grace: Grace) -> None:
    """Decide once and again over a few random samples: what numba compiles the first time on a machine takes
    seconds, and belongs to no selection."""
    rng, count = np.random.default_rng(0), 64
    signals = Signals(
        count,
        embedding=rng.standard_normal((count, 8), dtype=np.float32),
        grad=rng.standard_normal((count, 8), dtype=np.float32),
        loss=rng.random(count, dtype=np.float32),
        grad_norm=rng.random(count, dtype=np.float32),
        head_norm=rng.random(count, dtype=np.float32),
        num_tokens=np.full(count, 5, dtype=np.int32),
        domain=np.full(count, "any"),
    )
    some = replace(grace, fraction=0.5, count=None, tokens=None, candidates="all", search="exact")
    state = some.begin(signals)
    some.pick(state, signals)
    anchors = some.anchors_at(state, 1)
    elsewhere = replace(signals, embedding=-np.asarray(signals.embedding)).take(anchors)
    some.pick(some.refresh(state, anchors, elsewhere, 1).state, signals)


def _training(trainer: Any, rows: np.ndarray) -> float:
    """Seconds per sample of a forward and a backward pass; gradients and random state are given back."""
    samples, collate = trainer._training_samples()
    batch = trainer._train_batch_size
    model, device = trainer.model, trainer.args.device
    training, taken, autocast = model.training, [], autocast_of(trainer.args)
    kept = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    cuda = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    model.train()
    try:
        with torch.random.fork_rng(cuda), trainer.session.metrics_kept():
            for turn in range(TIMED_STEPS + 1):
                places = [int(rows[(turn * batch + i) % len(rows)]) for i in range(batch)]
                inputs = collate([samples[place] for place in places])
                start = time.perf_counter()
                with trainer.compute_loss_context_manager(), autocasting(device, autocast):
                    loss = trainer.compute_loss(model, trainer._prepare_inputs(inputs))
                loss.backward()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                taken.append((time.perf_counter() - start) / batch)
    finally:
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.grad = kept[name]
    return float(np.median(taken[1:]))


def _comparing(width: int) -> float:
    """Seconds per pair; of two rows that are compared only one product is made."""
    x = torch.ones(WIDTH, width)
    _ = x @ x.T
    start = time.perf_counter()
    _ = x @ x.T
    return (time.perf_counter() - start) / WIDTH**2 / 2


def _most(candidates: Any, pool: int) -> int:
    return pool if candidates == "all" else min(int(candidates), pool)
