"""Is the forecast of time right? Shares of deciding, and steps against full training, forecast and measured.

    python -m benchmarks.layers.estimate_time     # half an hour on one core
    python -m benchmarks.layers.estimate_time --subjects stories

Each arm is a run of `gradwise.run.train`. All clocks of a run read processor time, so that other work on the
machine counts little. The arms run one after the other in one process, in each round. The pool is sums and
speeches of plays. Forecasts are those that the run itself makes before its first step, and for steps those of
`gradwise estimate`.
"""

import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.common import smollm2
from benchmarks.common.command_line import Script, names_among, silence
from benchmarks.common.folders import build_folder
from benchmarks.common.tables import Claim, Content, Page, of_kind, table
from gradwise.data import Data, Source
from gradwise.data.settings import Allowed
from gradwise.demo import ASSETS
from gradwise.estimating import estimate
from gradwise.methods import D3, Direct, Grace, Grass
from gradwise.methods.baselines import UniformLayers
from gradwise.recipe import Adapter, Model, Recipe, Train
from gradwise.report.reading import charged, deciding_seconds, expected_shares
from gradwise.run import progress, train
from gradwise.run.progress import LogLines
from gradwise.stored import read_lines


@dataclass(frozen=True)
class Scale:
    """How large a subject's runs are."""

    title: str
    steps: int
    batch: int
    length: int
    scored: int
    """Samples of the pool that a method scores."""
    only: tuple[str, ...] = ()
    """Arms that are run; empty for all."""


SCALES = {
    "stories": Scale("stories260K", 24, 8, 128, 96),
    "llama10m": Scale("Llama of 9.8 M parameters, random weights", 12, 8, 128, 64),
    "smollm2": Scale(
        "SmolLM2-135M-Instruct", 8, 4, 64, 16, ("full", "grace, refreshed", "grass", "all four")
    ),
}
SHAPE = {
    "vocab_size": 4096, "hidden_size": 384, "intermediate_size": 1280, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}  # fmt: skip


def arms(scale: Scale) -> dict[str, dict[str, Any]]:
    """Sections of each arm's recipe."""
    once: Any = Grace(fraction=0.25, candidates=scale.scored, refresh_every=0, domain_minimum=1.0)
    again: Any = replace(once, refresh_every=scale.steps // 3, anchors=0.25)
    measuring: Any = D3(units="domains", size=4, probes=4, target_samples=8, overhead=1.0)
    annealing: Any = Direct(
        last=0.25, candidates=scale.scored // 2, count=scale.scored // 8, validation_samples=scale.scored // 8
    )
    grass: Any = Grass(active=2, period=5, probe=1)
    return {
        "full": {},
        "grace, once": {"select": once},
        "grace, refreshed": {"select": again},
        "grace by gradients, refreshed": {"select": replace(again, importance="alignment")},
        "grace, overhead 0.5": {"select": Grace(fraction=0.25, overhead=0.5)},
        "d3": {"order": measuring},
        "direct": {"anneal": annealing},
        "grass": {"layers": grass},
        "lisa": {"layers": UniformLayers(active=2, period=5)},
        "lora": {"adapter": Adapter(method="lora", options={"r": 8, "lora_dropout": 0.0})},
        "all four": {"select": again, "order": measuring, "layers": grass, "anneal": annealing},
    }


def recipe(subject: str, arm: str, folder: Path) -> Recipe:
    """An arm's recipe; the pool is sums and speeches of plays."""
    scale = SCALES[subject]
    return Recipe(
        model=_model(subject, folder),
        data=Data(
            train=[
                Source(str(ASSETS / "gsm8k_train.jsonl"), domain="sums"),
                Source(str(ASSETS / "plays_train.jsonl"), domain="plays"),
            ],
            validation=Source(str(ASSETS / "plays_held_out.jsonl")),
            max_length=scale.length,
            template="plain",
            allow=Allowed(cut=1.0, empty=1.0),
        ),
        train=Train(
            batch_size=scale.batch,
            learning_rate=1e-4,
            schedule="wsd",
            decay=0.25,
            arguments={
                "max_steps": scale.steps, "save_strategy": "no", "eval_strategy": "steps",
                "eval_steps": scale.steps // 2, "logging_steps": 1, "use_cpu": True, "report_to": "none",
            },
        ),
        **arms(scale)[arm],
    )  # fmt: skip


def _model(subject: str, folder: Path) -> Model:
    if subject == "stories":
        return Model(name=str(smollm2.STORIES))
    if subject == "smollm2":
        return Model(name=str(smollm2.model_folder()))

    def write(path: Path) -> None:
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(path)
        AutoTokenizer.from_pretrained(smollm2.STORIES).save_pretrained(path)

    return Model(name=str(build_folder(folder / "llama", write)))


@contextmanager
def processor_clock() -> Iterator[None]:
    """All clocks of a run read processor time."""
    with (
        mock.patch.object(time, "perf_counter", time.process_time),
        mock.patch.object(time, "monotonic", time.process_time),
    ):
        yield


def measure(subject: str, arm: str, folder: Path) -> dict[str, Any]:
    """Forecast and measured seconds of one run."""
    timed_recipe, out = recipe(subject, arm, folder), folder / "run"
    predicted = estimate(timed_recipe)
    shutil.rmtree(out, ignore_errors=True)
    with processor_clock(), silence(), left_noted() as noted:
        began = time.perf_counter()
        done = train(timed_recipe, out, tell=lambda _: None, progress=True, score=False)
        whole = time.perf_counter() - began
    if not done.finished:
        raise SystemExit("Interrupted; run the same command to resume.")
    events = read_lines(out / "events.jsonl")
    seconds = next(event["seconds"] for event in events if event["event"] == "finished")
    return {
        "expected": expected_shares(events),
        "recipe_alone": {name: part["share"] for name, part in predicted.shares.items()},
        "forward_passes": predicted.training,
        "spent": {name: round(value, 4) for name, value in charged(events).items() if value},
        "training": round(seconds - deciding_seconds(events), 4),
        "whole": round(whole, 4),
        "left": noted,
    }


@contextmanager
def left_noted() -> Iterator[list[dict[str, float]]]:
    """After each step: the time left that a run shows, what the mean rate so far says, and the truth."""
    noted: list[dict[str, float]] = []
    began: list[float] = []

    class Noting(LogLines):
        def on_train_begin(self, *args: Any, **more: Any) -> None:
            super().on_train_begin(*args, **more)
            began.append(time.perf_counter())

        def on_step_end(self, _: object, state: Any, __: object, **___: object) -> None:
            now, done = time.perf_counter(), state.global_step
            shown = self._time_left.seconds() if self._time_left is not None else None
            rate = (now - began[-1]) / done * (state.max_steps - done)
            noted.append({"step": done, "now": now, "shown": shown or 0.0, "rate": rate})

        def on_train_end(self, *_: object, **__: object) -> None:
            end = time.perf_counter()
            for one in noted:
                one["left"] = end - one.pop("now")

    with mock.patch.object(progress, "LogLines", Noting):
        yield noted


WITHIN = 0.25
"""Relative error that a forecast may have."""


@dataclass(frozen=True)
class Compared:
    """A forecast beside what was measured."""

    arm: str
    what: str
    """`step` for the time of a step over that of full training, or a section of the recipe."""
    forecast: float
    measured: float

    @property
    def error(self) -> float:
        """Relative."""
        return self.forecast / self.measured - 1


def compared(content: Content, subject: str) -> list[Compared]:
    """All forecasts of a subject; measured values are medians over the rounds."""
    runs = _by_arm(content, subject)
    full = _median(run["training"] for run in runs["full"])
    comparisons = []
    for arm, arm_runs in runs.items():
        step = arm_runs[0]["forward_passes"] / runs["full"][0]["forward_passes"]
        if step != 1:
            comparisons.append(
                Compared(arm, "step", step, _median(run["training"] for run in arm_runs) / full)
            )
        # A section may have nothing to measure, as an order over too few units, and then no event either.
        for section in (name for name, share in arm_runs[0]["expected"].items() if share):
            forecast = _median(run["expected"][section] for run in arm_runs)
            measured = _median(run["spent"][section] / run["training"] for run in arm_runs)
            comparisons.append(Compared(arm, section, forecast, measured))
    return comparisons


def _by_arm(content: Content, subject: str) -> dict[str, list[dict[str, Any]]]:
    runs: dict[str, list[dict[str, Any]]] = {}
    for key, run in of_kind(content, "run").items():
        run_subject, arm, _ = key.split("/")
        if run_subject == subject:
            runs.setdefault(arm, []).append(run)
    return runs


def _early(run: dict[str, Any]) -> dict[str, float]:
    """After a tenth of the steps, at least two."""
    left = run["left"]
    return left[max(2, math.ceil(len(left) / 10)) - 1]


def _median(values: Iterable[float]) -> float:
    return float(statistics.median(values))


def page(content: Content) -> Page:
    sections, everything, early = [], [], []
    for subject, scale in SCALES.items():
        if not _by_arm(content, subject):
            continue
        forecasts = compared(content, subject)
        everything += forecasts
        rows = [
            [
                one.arm, f"`{one.what}`", f"{one.forecast:.3f}", f"{one.measured:.3f}",
                f"{one.error:+.0%}{'' if abs(one.error) <= WITHIN else ' (miss)'}",
            ]
            for one in forecasts
        ]  # fmt: skip
        sections += [
            f"**{scale.title}**: {scale.steps} steps of {scale.batch} samples of at most {scale.length} "
            "tokens; `step` is the training time over that of full training, the others are shares of the "
            "arm's own training time.",
            table(["arm", "part", "forecast", "measured", "error"], rows),
        ]
        for arm, runs in _by_arm(content, subject).items():
            shown = _median(_early(run)["shown"] / _early(run)["left"] for run in runs)
            rate = _median(_early(run)["rate"] / _early(run)["left"] for run in runs)
            early.append((scale.title, arm, shown, rate))
    sections += [
        "**Time left**, after a tenth of the steps (at least two): what the run shows, and what the mean "
        "rate of steps so far says, over the time that the run then still took.",
        table(
            ["model", "arm", "shown", "mean rate"],
            [[title, arm, f"{shown:.2f}", f"{rate:.2f}"] for title, arm, shown, rate in early],
        ),
    ]
    near = sum(abs(one.error) <= WITHIN for one in everything)
    shown = [each[2] for each in early]
    return Page(
        sections,
        [
            Claim(
                "Forecasts of time within 25 %; time left after a tenth of a run, over the truth",
                f"{near} of {len(everything)}; {min(shown):.2f} to {max(shown):.2f}",
            )
        ],
    )


SCRIPT = Script(__doc__, "estimate-time")
SCRIPT.add_argument("--subjects", type=names_among(SCALES), default=list(SCALES), help=", ".join(SCALES))
SCRIPT.add_argument("--arms", type=lambda text: text.split(";"), help="only these, separated by ;")
SCRIPT.add_argument("--rounds", type=int, default=1, help="runs of each arm (default: 1)")


def main() -> None:
    torch.set_num_threads(1)
    options, result = SCRIPT.start()
    with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as name:
        folder = Path(name)
        # What numba compiles and libraries load the first time belongs to no arm.
        measure("stories", "grace, once", folder)
        for number in range(options.rounds):
            for subject in options.subjects:
                for arm in options.arms or SCALES[subject].only or arms(SCALES[subject]):
                    result.once(f"run/{subject}/{arm}/{number}", partial(measure, subject, arm, folder))


if __name__ == "__main__":
    main()
