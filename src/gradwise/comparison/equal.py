"""Gives every arm the number of steps that its budget allows; once found, numbers are fixed.

Calibrations run under the load that runs will meet: with --jobs 2, two copies of the same arm at once.
"""

from collections.abc import Callable
from dataclasses import asdict
from statistics import mean
from typing import Any, Literal

from gradwise.comparison.arms import Arm
from gradwise.comparison.budget import Calibrated, Speed, seconds_for, steps_within_seconds
from gradwise.comparison.folder import ComparisonFolder
from gradwise.comparison.progress import ComparisonProgress
from gradwise.comparison.workers import Task, WorkerPool
from gradwise.errors import GradwiseError, RecipeError

WORKBENCH = "gradwise.comparison.workbench"

LONGEST_CALIBRATION = 20.0
"""Seconds of steps that a calibration takes at most, but for slow models; a tenth of the budget otherwise."""

UNKNOWN_BUDGET = 5.0
"""The same, while the budget itself is still to be measured."""


def equalise(folder: ComparisonFolder, arms: list[Arm], pool: WorkerPool, shown: ComparisonProgress) -> None:
    """Find the steps of all runs that do not have theirs yet, and write them into `folder.contents`.

    An arm for which there is no such number (its budget is spent before the first step, or measuring it
    failed) is noted as failed and tried again by the next call.
    """
    if folder.budget.kind == "time":
        _check_jobs(folder, pool.jobs)
    seeds = folder.contents["seeds"]
    # Numbers that were found once stay: seeds that are added later must train as long as the earlier ones.
    missing = [arm for arm in arms if any(folder.steps(arm.name, seed) is None for seed in seeds)]
    if not missing:
        return
    for arm in missing:
        folder.contents["failed"].pop(arm.name, None)
    reference = next((arm for arm in arms if arm.name == folder.contents["reference"]), None)
    if reference is None and folder.budget.amount is None:
        raise RecipeError(
            f"The budget is what {folder.contents['reference']} spends, which is not known yet; name it "
            "among --arms."
        )
    way = {"steps": _by_steps, "tokens": _by_tokens, "time": _by_time}[folder.budget.kind]
    way(_Equaliser(folder, pool, shown), missing, reference or missing[0])


def _check_jobs(folder: ComparisonFolder, jobs: int) -> None:
    """Refuse runs, of whichever arms, under another load than speeds were measured under."""
    for name, measurement in folder.contents["calibration"].items():
        if measurement["jobs"] != jobs:
            raise RecipeError(
                f"The speed of {name} was measured with --jobs {measurement['jobs']}; resume with the same."
            )


class _Equaliser:
    """What the three ways have in common: work in other processes, and where results go."""

    def __init__(self, folder: ComparisonFolder, pool: WorkerPool, shown: ComparisonProgress) -> None:
        self.folder, self.pool, self.shown = folder, pool, shown

    def amount(self) -> float | None:
        return self.folder.budget.amount

    def set_amount(self, amount: float) -> None:
        """Write the amount of the budget into the comparison."""
        self.folder.contents["budget"]["amount"] = amount
        self.folder.save()

    def counted(self, reference: Arm, unit: Literal["steps", "tokens"]) -> bool:
        """Whether the budget is known; if it is not, it becomes what the reference's recipe asks for."""
        if self.amount() is None:
            self.shown.say(f"Counting the {unit} of {reference.name}.")
            if not (values := self.call_workbench(reference, f"{unit}_of_recipe")):
                return False
            self.set_amount(values[0])
        return True

    def call_workbench(self, arm: Arm, call: str, *, copies: int = 1, **arguments: object) -> list[Any]:
        """What a function of the workbench finds out about an arm, done by `copies` processes at once.

        Raises:
            GradwiseError: why it failed.
        """
        tasks = [self._task(arm, call, arguments, copy) for copy in range(copies)]
        results = list(self.pool.run(tasks))
        failures = [result.failure for result in results if result.failure is not None]
        if failures:
            raise GradwiseError(failures[0])
        return [result.value for result in results if not result.stopped]

    def _task(self, arm: Arm, call: str, arguments: dict[str, Any], copy: int) -> Task:
        where = self.folder.calibration(arm.name, copy)
        base_arguments = {"recipe": arm.recipe, "folder": where, "shared": self.folder.signals}
        return Task(
            arm.name, f"{WORKBENCH}:{call}", base_arguments | arguments, where.with_name(f"{where.name}.log")
        )

    def each(self, arms: list[Arm], find: Callable[[Arm], Any]) -> None:
        """Find the steps of each arm; an arm that fails takes no other down."""
        for arm in arms:
            if self.pool.stops:
                return
            try:
                steps = find(arm)
            except GradwiseError as error:
                # Noted and not raised: the other arms are worth having without this one.
                self.folder.contents["failed"][arm.name] = str(error)
                self.shown.say(f"{arm.name}: {error}")
            else:
                if steps is not None:
                    self.folder.contents["steps"][arm.name] = steps
            self.folder.save()


def _by_steps(equaliser: _Equaliser, arms: list[Arm], reference: Arm) -> None:
    if equaliser.counted(reference, "steps"):
        equaliser.each(arms, lambda _: int(equaliser.amount() or 0))


def _by_tokens(equaliser: _Equaliser, arms: list[Arm], reference: Arm) -> None:
    if not equaliser.counted(reference, "tokens"):
        return

    def steps(arm: Arm) -> dict[int, int] | None:
        steps_by_seed: dict[int, int] = equaliser.folder.contents["steps"].get(arm.name, {})
        # Each seed has a plan of its own, whose samples have other lengths: the steps differ by seed.
        seeds = [seed for seed in equaliser.folder.contents["seeds"] if seed not in steps_by_seed]
        equaliser.shown.say(f"Counting the tokens of {arm.name}.")
        values = equaliser.call_workbench(arm, "steps_for_tokens", seeds=seeds, amount=equaliser.amount())
        return {**steps_by_seed, **values[0]} if values else None

    equaliser.each(arms, steps)


def _by_time(equaliser: _Equaliser, arms: list[Arm], reference: Arm) -> None:
    if equaliser.amount() is None:
        measured = _calibrate(equaliser, reference)
        if measured is None:
            return
        # The budget is what the reference needs for its own steps, so that the reference makes exactly these.
        equaliser.set_amount(round(seconds_for(measured.speed, measured.steps), 3))

    def steps(arm: Arm) -> int | None:
        measured = _calibrate(equaliser, arm)
        if measured is None:
            return None
        return steps_within_seconds(measured.speed, equaliser.amount() or 0.0)

    equaliser.each(arms, steps)


def _calibrate(equaliser: _Equaliser, arm: Arm) -> Calibrated | None:
    """An arm's speed, measured unless it has been; None when it was stopped on the way."""
    contents = equaliser.folder.contents["calibration"]
    if arm.name not in contents:
        equaliser.shown.say(f"Measuring the speed of {arm.name}.")
        amount = equaliser.amount()
        seconds = UNKNOWN_BUDGET if amount is None else min(LONGEST_CALIBRATION, amount / 10)
        # As many copies as there will be runs at once: a step took two to four times as long under a load of
        # 5 to 8 (docs/log.md).
        values: list[Calibrated] = equaliser.call_workbench(
            arm, "calibrate", copies=equaliser.pool.jobs, seconds=seconds
        )
        if len(values) < equaliser.pool.jobs:
            return None
        speed = Speed(
            *(mean(getattr(value.speed, part) for value in values) for part in ("deciding", "start", "step")),
            steps=values[0].speed.steps,
        )
        contents[arm.name] = {
            **{name: round(value, 6) for name, value in asdict(speed).items()},
            "steps_of_recipe": values[0].steps,
            "jobs": equaliser.pool.jobs,
        }
        equaliser.folder.save()
    measurement = contents[arm.name]
    speed = Speed(**{name: measurement[name] for name in ("deciding", "start", "step", "steps")})
    return Calibrated(speed, measurement["steps_of_recipe"])
