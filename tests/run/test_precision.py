"""Everything that scores or times samples computes as training does."""

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradwise as gw
from gradwise import Data, Model, Recipe, Train
from gradwise.precision import autocast_of, autocasting
from gradwise.run import train
from gradwise.run.order import order_samples
from gradwise.run.select import select_annealing, select_samples
from gradwise.run.signals import collect_signals

CALLERS = {
    "time_forward_backward", "scoring_speed", "first_plan", "signals_now", "run_probe", "decide",
    "_hessian_product", "_step", "losses", "by_autograd", "_measure", "training_step", "evaluate", "write",
    "collect_signals", "choose", "select_annealing", "order_samples",
}  # fmt: skip

RUN = {
    "time_forward_backward", "scoring_speed", "first_plan", "signals_now", "run_probe", "decide",
    "_hessian_product", "by_autograd", "_measure", "training_step", "evaluate", "write",
}  # fmt: skip
"""What a run with all four methods calls: timing, scoring, refreshes, probes, training, evaluation."""

COMMANDS = {"collect_signals", "choose", "select_annealing", "order_samples", "_step", "losses"}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[torch.dtype]]:
    """Types that linear layers computed in, by the functions that called them."""
    found: dict[str, set[torch.dtype]] = defaultdict(set)
    forward = nn.Linear.forward

    def recorded(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        out, frame, callers = forward(self, x), sys._getframe(1), set()
        while frame is not None:
            callers.add(frame.f_code.co_name)
            frame = frame.f_back
        if "used_otherwise" not in callers:  # which inspects how weights are used, not the results
            for name in callers & CALLERS:
                found[name].add(out.dtype)
        return out

    monkeypatch.setattr(nn.Linear, "forward", recorded)
    return found


@pytest.fixture
def recipe(stories: Path, tmp_path: Path) -> Recipe:
    """All four methods, each of which measures, on short samples."""
    sources: Any = {}
    for part, count in (("train", 12), ("validation", 3)):
        path = tmp_path / f"{part}.jsonl"
        texts = [f"{'once upon a time ' * (1 + n % 3)}{n}" for n in range(count, 2 * count)]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        sources[part] = gw.Source(path=str(path))
    return Recipe(
        model=Model(name=str(stories)),
        data=Data(**sources, max_length=32),
        train=Train(batch_size=2, epochs=1, schedule="wsd"),
        signals=gw.recipe.SignalSettings(grad_dim=64),
        select=gw.Grace(count=12, candidates="all", overhead=50.0, refresh_every=2, importance="alignment"),
        order=gw.D3(units="batches", window=2, commit=1, probes=2, target_samples=1, overhead=3.0),
        layers=gw.Grass(active=2, probe=1),
        anneal=gw.Direct(last=0.3, count=3),
    )


def in_type(recipe: Recipe, computed: str) -> Recipe:
    assert recipe.model is not None
    if computed == "bf16":
        return replace(recipe, train=replace(recipe.train, arguments={"bf16": True, "use_cpu": True}))
    return replace(recipe, model=replace(recipe.model, dtype=computed))


TYPES = {"bf16": torch.bfloat16, "float32": torch.float32, "bfloat16": torch.bfloat16}

EACH = [
    pytest.param(name, dtype, marks=[] if name == "bf16" else [pytest.mark.exhaustive])
    for name, dtype in TYPES.items()
]


@pytest.mark.parametrize(("computed", "dtype"), EACH)
def test_a_run_computes_in_one_type(
    recipe: Recipe, seen: Any, tmp_path: Path, computed: str, dtype: Any
) -> None:
    train(in_type(recipe, computed), tmp_path / "run", tell=lambda _: None, progress=False)
    assert seen.keys() >= RUN
    assert seen == {name: {dtype} for name in seen}


@pytest.mark.slow
@pytest.mark.parametrize(("computed", "dtype"), EACH)
def test_commands_compute_as_the_recipe_trains(
    recipe: Recipe, seen: Any, tmp_path: Path, computed: str, dtype: Any
) -> None:
    recipe, quiet = in_type(recipe, computed), {"tell": lambda _: None, "progress": False}
    collect_signals(recipe, tmp_path / "signals", want=["grad", "head_norm"], **quiet)
    select_samples(recipe, tmp_path / "picks", **quiet)
    select_annealing(recipe, tmp_path / "phase", **quiet)
    ahead = gw.D3(units="clusters", size=2, probes=2, target_samples=2, edges="lookahead")
    order_samples(replace(recipe, order=ahead), tmp_path / "order", **quiet)
    assert seen.keys() >= COMMANDS
    assert seen == {name: {dtype} for name in seen}


def test_trial_steps_see_the_weights_they_made(story_model: Callable[[], Any], speeches: Any) -> None:
    """Autocast caches the weights it has cast, which a trial step changes."""
    data = speeches.select(range(8)).remove_columns("domain")

    def ahead(autocast: Any, around: Any) -> Any:
        model = story_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        with autocasting(torch.device("cpu"), around):
            return gw.Probe(model, optimizer, data, autocast=autocast).lookahead([[0, 1]], on=[2, 3]).after

    one, other = (ahead(*types) for types in ((torch.bfloat16, None), (None, torch.bfloat16)))
    assert one == pytest.approx(other, rel=0)
    assert one == pytest.approx(ahead(None, None), rel=0.02)


def test_a_store_of_another_precision_is_refused(
    story_model: Callable[[], Any], speeches: Any, tmp_path: Path
) -> None:
    data = speeches.select(range(4)).remove_columns("domain")
    options: Any = {"want": "loss", "store": tmp_path / "store", "progress": False}
    gw.collect(story_model(), data, **options)
    with pytest.raises(gw.SignalError, match="autocast"):
        gw.collect(story_model(), data, autocast=torch.bfloat16, **options)


def test_float16_refuses_trial_steps(story_model: Callable[[], Any], speeches: Any) -> None:
    model = story_model()
    with pytest.raises(gw.RecipeError, match=r"float16.*use bf16, or another method"):
        gw.Probe(model, torch.optim.SGD(model.parameters()), speeches, autocast=torch.float16)


def test_the_launcher_decides_what_arguments_leave_open(
    monkeypatch: pytest.MonkeyPatch, arguments: Any
) -> None:
    assert autocast_of({}) is None
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert autocast_of({}) == autocast_of(arguments()) == torch.bfloat16
    assert autocast_of({"fp16": True}) == torch.float16
