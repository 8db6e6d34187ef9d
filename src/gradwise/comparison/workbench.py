"""What is to be known of an arm before it runs: its data, the steps of its plan, its speed.

These run in processes of their own, as runs do, and build the same trainer as `gradwise.run.train`.
"""

import math
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from numpy.typing import NDArray

from gradwise.comparison.budget import Calibrated, Speed, steps_within_tokens
from gradwise.data import Collator, Pool, overlap
from gradwise.data.parts import load_parts
from gradwise.errors import RecipeError
from gradwise.folders import OwnedFolder, claimed
from gradwise.methods.baselines import FullData, Shuffle
from gradwise.planning.decider import MOST_COUNTED, DecisionCost
from gradwise.recipe import Recipe
from gradwise.run.directory import FILES
from gradwise.run.model import load_model, load_tokenizer
from gradwise.run.model_files import local_folder, sampled_digest
from gradwise.run.signals import load_proxy
from gradwise.stored import read_lines
from gradwise.trainer import Trainer
from gradwise.training.arguments import training_arguments
from gradwise.training.plan import Plan, Segment

WARMING_UP = 2
"""First steps of a calibration, which allocate and are not counted."""

FIRST_STEPS, MIN_STEPS, MAX_STEPS = 6, 12, 200
"""Steps timed at first, and at least and at most once that has shown how long they take."""


def check_data(recipe: Recipe) -> dict[str, Any]:
    """Read all parts of the data; how many held-out samples are trained on (`shared`), how many there are
    (`held_out`), the `fingerprints` of the parts, and that of a `model` in a local folder."""
    assert recipe.model is not None and recipe.data is not None
    tokenizer = load_tokenizer(recipe.model)
    parts = load_parts(
        recipe.data, tokenizer, goal=recipe.goal, annealing=recipe.annealing_data, progress=False
    )
    pools = {
        "training": parts.train,
        "held-out": parts.validation,
        "target": parts.target,
        "annealing": parts.annealing,
    }
    fingerprints = {name: pool.fingerprint for name, pool in pools.items() if pool is not None}
    facts: dict[str, Any] = {"shared": 0, "held_out": 0, "fingerprints": fingerprints}
    if (model_folder := local_folder(recipe.model.name)) is not None:
        facts["model"] = sampled_digest(model_folder)
    if parts.validation is None:
        return facts
    trained = parts.train if parts.annealing is None else parts.train.followed_by(parts.annealing)
    return facts | {"shared": overlap(trained, parts.validation), "held_out": len(parts.validation)}


def steps_of_recipe(recipe: Recipe, folder: Path, shared: Path) -> int:
    """Optimizer steps that the recipe asks for."""
    if (max_steps := recipe.train.arguments.get("max_steps", 0)) > 0:
        return max_steps
    with _claimed(folder) as owned:
        return _planned_steps(Workbench(recipe, shared, owned).planned())


def tokens_of_recipe(recipe: Recipe, folder: Path, shared: Path) -> int:
    """Input tokens that the recipe trains on."""
    with _claimed(folder) as owned:
        trainer = Workbench(recipe, shared, owned).planned()
        return int(_tokens(trainer)[: _planned_steps(trainer)].sum())


def steps_for_tokens(
    recipe: Recipe, seeds: list[int], amount: float, folder: Path, shared: Path
) -> dict[int, int]:
    """For each seed the steps that stay inside a budget of input tokens."""
    if recipe.anneal is not None:
        raise RecipeError(
            "A budget of tokens cannot be met with `anneal`, whose picks are known only when the "
            "learning rate begins to decay; use --budget steps or time."
        )
    with _claimed(folder) as owned:
        bench, steps = Workbench(recipe, shared, owned), {}
        for seed in seeds:
            seeded, plan_steps = replace(recipe, seed=seed), 1
            while True:
                tokens = _tokens(bench.planned(seeded, steps=plan_steps))
                # The plan is long enough once it exceeds the budget; only then is the number of whole steps
                # known.
                if tokens.sum() > amount:
                    break
                # A tenth more than the mean step suggests, since later steps may be shorter.
                plan_steps = math.ceil(1.1 * len(tokens) * amount / tokens.sum()) + 1
            steps[seed] = steps_within_tokens(tokens, amount)
    return steps


def calibrate(recipe: Recipe, seconds: float, folder: Path, shared: Path) -> Calibrated:
    """Measure an arm's speed: one whole decision, steps from all over its plan, one measurement of influence.

    Steps are spread evenly over the plan because an order may put long samples first, and a layer policy
    draws again at every step because a step's time depends on the lowest layer drawn. Nothing is learned: the
    learning rate is next to zero.

    Args:
        recipe: the arm's.
        seconds: how long the steps should take in total; between `MIN_STEPS` and `MAX_STEPS` steps are timed.
        folder: gets the record.
        shared: folder of signals that runs share.
    """
    with _claimed(folder) as owned:
        bench = Workbench(recipe, shared, owned)
        decided = bench.planned()
        deciding, steps = decided.session.record.seconds, _planned_steps(decided)
        first = bench.timed(decided, FIRST_STEPS)
        count = int(np.clip(seconds / first.step, MIN_STEPS, MAX_STEPS))
        speed = bench.timed(decided, count)
        # Decisions that come while training are spread over the steps they come at.
        cost = bench.while_training(decided, steps)
    step = speed.step * (1 + cost.fraction) + cost.seconds_per_step
    deciding += cost.seconds
    return Calibrated(replace(speed, deciding=deciding, step=step), steps)


def _claimed(folder: Path) -> AbstractContextManager[OwnedFolder]:
    return claimed(folder, "run", FILES)


class Workbench:
    """A recipe's model and data, loaded once, and trainers over them.

    Args:
        recipe: of the arm.
        shared: folder of signals that runs share.
        folder: for the trainers' records, claimed; each trainer empties it.
    """

    def __init__(self, recipe: Recipe, shared: Path, folder: OwnedFolder) -> None:
        assert recipe.model is not None and recipe.data is not None
        transformers.utils.logging.set_verbosity_error()
        self.recipe, self.shared, self.folder = recipe, shared, folder
        self.packed = recipe.data.max_length if recipe.data.packing else None
        self.unpack_if_needed = recipe.data.packing == "auto"
        self.tokenizer = load_tokenizer(recipe.model)
        parts = load_parts(
            recipe.data, self.tokenizer, goal=recipe.goal, annealing=recipe.annealing_data, progress=False
        )
        self.pool, self.annealing = parts.train, parts.annealing
        self.held_out: Any = None
        self.target: Pool | None = None
        influence = recipe.order.influence
        by_held_out = influence is not None and influence.target == "validation"
        if (recipe.anneal is not None or by_held_out) and parts.validation is not None:
            self.held_out = parts.validation.dataset
        if recipe.uses_target:
            self.target = parts.target
        transformers.set_seed(recipe.seed)
        self.model = load_model(recipe.model, recipe.adapter)
        self.proxy = load_proxy(recipe, self.pool, self.target, progress=False)

    def planned(self, recipe: Recipe | None = None, *, steps: int | None = None) -> Trainer:
        """A trainer that has decided what to train on, and done nothing else.

        Args:
            recipe: another seed's.
            steps: plan at least this many, instead of those the recipe asks for.
        """
        changes = {} if steps is None else {"max_steps": steps}
        recipe = _with_arguments(recipe or self.recipe, **changes)
        trainer = self._trainer(recipe)
        trainer.session.open(None)
        trainer.session.prepare()
        trainer.session.record.stop_clock()
        return trainer

    def timed(self, decided: Trainer, count: int) -> Speed:
        """Seconds before and per step, over `count` steps of a plan besides those that warm up."""
        recipe = _for_timing(self.recipe)
        plan = _spread(decided, WARMING_UP + count)
        self._trainer(recipe, plan=plan).train()
        metrics, events = (read_lines(self.folder.path / f"{name}.jsonl") for name in ("metrics", "events"))
        ends = [line["seconds"] for line in metrics if "loss" in line]
        draws = [line for line in events if line["event"] == "layers"]
        # The first steps allocate memory, once for a run of any length.
        timed = len(ends) - WARMING_UP
        step = (ends[-1] - ends[WARMING_UP - 1]) / timed
        # What the first steps took beyond their share; measured noise must not make it negative.
        start = max(0.0, ends[WARMING_UP - 1] - WARMING_UP * step)
        if draws:
            # Here every step draws; in the run one in `period` does.
            draw = sum(line["seconds"] for line in draws) / len(draws)
            step -= draw * (1 - 1 / self.recipe.layers.period)  # type: ignore[union-attr]
        return Speed(0.0, start, max(step, 1e-4), timed)

    def while_training(self, decided: Trainer, steps: int) -> DecisionCost:
        """What the decisions that come while training cost. The order's is made once and timed: by counts
        alone, the published D³ was expected to take 1.5 times as long as it took (docs/log.md)."""
        session, total = decided.session, DecisionCost()
        planner, plan = session.planner, session.plan
        assert plan is not None
        schedule, context = session.layout.schedule(plan), session.context()
        for decider in planner.deciders:
            cost = decider.forecast(context)
            # A layer policy's draw decides which gradients a measurement takes, and nothing is drawn here.
            if decider is planner.ordering and decider.recurs and self.recipe.layers.policy is None:
                _begin_optimizer(decided)
                decider.decide(session.context(), plan, 0)
                seconds = session.record.spent["order"][1]
                times = len(decider.costly_steps(schedule))
                cost = DecisionCost(seconds_per_step=times * seconds / min(steps, MOST_COUNTED))
            total = total.plus(cost)
        return total

    def _trainer(self, recipe: Recipe, plan: Plan | None = None) -> Any:
        self.folder.clear()
        arguments = training_arguments(
            recipe.train,
            output_dir=self.folder.path / "checkpoints",
            seed=recipe.seed,
            ranks=1,
            validation=False,
            bars=False,
            last=None if recipe.anneal is None else recipe.anneal.last,
        )
        return Trainer(
            model=self.model,
            args=arguments,
            train_dataset=self.pool.dataset,
            eval_dataset=self.held_out,
            processing_class=self.tokenizer,
            data_collator=Collator.for_tokenizer(self.tokenizer),
            recipe=recipe.for_trainer(),
            plan=plan,
            run_dir=self.folder,
            packed_length=self.packed,
            unpack_if_needed=self.unpack_if_needed,
            shared_signals=self.shared,
            proxy=self.proxy,
            target_dataset=None if self.target is None or plan is not None else self.target.dataset,
            target_for_select=self.recipe.goal is not None,
            anneal_dataset=None if self.annealing is None or plan is not None else self.annealing.dataset,
        )


def _begin_optimizer(trainer: Any) -> None:
    """Give a trainer that has decided its optimizer, with the state of one step that moves nothing: before
    Adam's first step a measurement takes its second moments besides."""
    optimizer = trainer.create_optimizer()
    if callable(begin := getattr(optimizer, "train", None)):
        begin()  # schedule-free optimizers have modes
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    trainer.model.train()
    for batch in trainer.session.ahead(0):
        trainer.loss_of(batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _with_arguments(recipe: Recipe, **changes: object) -> Recipe:
    """With TrainingArguments changed, and nothing that evaluates, saves or reports."""
    idle = ("eval_", "per_device_eval", "load_best", "metric_for_best", "greater_is", "push_to_hub", "hub_")
    idle += ("save_", "logging_", "report_to")
    arguments = {name: value for name, value in recipe.train.arguments.items() if not name.startswith(idle)}
    return replace(recipe, train=replace(recipe.train, arguments=arguments | changes))


def _for_timing(recipe: Recipe) -> Recipe:
    recipe = _with_arguments(recipe, max_steps=-1, save_strategy="no", logging_steps=1, report_to="none")
    unscheduled = {
        name: value
        for name, value in recipe.train.arguments.items()
        if not name.startswith(("warmup", "lr_scheduler"))
    }
    train = replace(
        recipe.train,
        epochs=1.0,
        schedule="constant",
        decay=None,
        decay_shape=None,
        early_stopping_patience=None,
        learning_rate=1e-9,
        arguments=unscheduled,
    )
    layers = recipe.layers if recipe.layers.policy is None else replace(recipe.layers.policy, period=1)
    return replace(recipe, train=train, layers=layers, select=FullData(), order=Shuffle(), anneal=None)


def _spread(decided: Trainer, count: int) -> Plan:
    """`count` whole steps from all over a plan, in its order."""
    batches, plan = decided.session.schedule, decided.session.plan
    assert plan is not None
    chosen = np.linspace(0, batches.steps - 1, count).round().astype(int)
    indices = np.concatenate([batches.samples(int(step)) for step in chosen])
    return Plan((Segment(indices, 0, ("a calibration",)),), pool=plan.pool)


def _planned_steps(trainer: Trainer) -> int:
    """Steps of a planned trainer's run."""
    plan = trainer.session.plan
    assert plan is not None
    return trainer.session.layout.schedule(plan).steps


def _tokens(trainer: Trainer) -> NDArray[np.int64]:
    """(steps,) input tokens of each step of a planned trainer."""
    session = trainer.session
    assert session.plan is not None
    if session.plan.until is not None:
        raise RecipeError(
            f"Tokens can be counted over {session.plan.epochs:,} epochs, which a plan lays out at once, and "
            "this budget needs more; use --budget steps or time."
        )
    return np.array([session.input_tokens(step) for step in range(session.schedule.steps)], dtype=np.int64)
