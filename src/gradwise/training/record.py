"""The run's own record: `metrics.jsonl`, a line per step or evaluation, and `events.jsonl`, a line per
decision.

The Trainer's running loss is not checkpointed and its log is as coarse as `logging_steps`; these files hold
every step, and a resumed run cuts them back to its checkpoint, so that they end as those of a run that was
never stopped.

`seconds` is what the run is charged: the wall-clock from the moment training is called, with every decision
(signals, selection, order, probes, draws) and every step in it. Not charged are evaluations and checkpoints,
which are as many as somebody wants to see and cost all methods the same, and what comes before and after: the
loading of model and data, the setting up of a resumed run, scoring, saving the model. What another run has
measured already is charged as if this one had measured it.
"""

import json
import math
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradwise.atomic import writing
from gradwise.errors import CheckpointError, GradwiseError
from gradwise.stored import read_lines
from gradwise.training.record_names import NOT_DECIDING

NUMBER_FIELDS = ("numbers", "layers")
TRACKED = ("coverage", "agreement", "importance", "closeness", "objective")
"""Numbers of decisions that trackers show."""
EVALUATION, CHECKPOINT, OTHER = "evaluation", "checkpoint", "other"
"""What is not charged."""
FILES = {"metrics": "metrics.jsonl", "events": "events.jsonl"}


class NonFiniteError(GradwiseError):
    """The training loss or the gradient became NaN or infinite at `step`; nothing from then on was saved."""

    def __init__(self, step: int, quantity: str, value: float) -> None:
        super().__init__(f"The training {quantity} is {value} at step {step}.")
        self.step = step
        self.quantity = quantity
        self.value = value


class RunRecord:
    """Writes both files. All ranks keep one, since losses are averaged over ranks; only the first writes.

    Args:
        folder: where the files lie.
        writes: whether this rank writes them.
    """

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.folder = folder
        self.writes = writes
        self._steps: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self.latest: dict[str, Any] = {}
        """The last step that was written."""
        self.run = ""
        self.numbers: dict[str, float] = {}
        """What trackers show of the decisions: the latest of each number, and `deciding_seconds` in all."""
        self.layers: dict[str, float] = {}
        """The same of single layers: `layer_score/3`, and `layer_active/3`, which is 0 or 1."""
        self.spent: dict[str, tuple[int, float]] = {}
        """Number and seconds of events by kind, and of what is not charged by what it was."""
        self.ahead: dict[str, float] = {}
        """What the plan says of each decision while the run trains, by section, over the training time."""
        self._open = False
        self._charged = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds charged so far, over all resumes; stands still while the clock does."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._charged + running

    def charge(self, seconds: float) -> None:
        """Add what somebody else has spent for this run."""
        self._charged += seconds

    def start_clock(self) -> None:
        """Charge from now on."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop_clock(self) -> None:
        """Charge no more; what was queued on an accelerator is waited for, and charged."""
        if self._since is not None:
            _wait_for_accelerator()
            self._charged, self._since = self.seconds, None

    @property
    def deciding(self) -> float:
        """Seconds of all decisions so far."""
        uncharged = (EVALUATION, CHECKPOINT, OTHER)
        return sum(
            seconds for kind, (_, seconds) in self.spent.items() if kind not in (*NOT_DECIDING, *uncharged)
        )

    @contextmanager
    def uncharged(self, what: str = OTHER) -> Iterator[None]:
        """What happens inside costs the run nothing; `what` it is says how it is counted."""
        running, start = self._since is not None, time.perf_counter()
        self.stop_clock()
        try:
            yield
        finally:
            self._count(what, time.perf_counter() - start)
            if running:
                _wait_for_accelerator()
                self.start_clock()

    def start(self, state: dict[str, Any] | None = None) -> None:
        """Begin with the clock running; or with the state of a checkpoint: both files are cut back to where
        they were then, and the clock stands until all else is as it was, too (`start_clock`)."""
        self._steps.clear()
        self._losses.clear()
        self.run = state["run"] if state else uuid.uuid4().hex
        self._open = True
        self._charged = state["seconds"] if state else 0.0
        self.numbers, self.layers = (dict(state.get(name, {})) if state else {} for name in NUMBER_FIELDS)
        self._since = None if state else time.perf_counter()
        self.spent, self.ahead = {}, {}
        if self.writes:
            for name, file_name in FILES.items():
                path = self.folder / file_name
                with writing(path):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    path.touch()
                    # Lines after the checkpoint belong to steps that will be made again; without the cut they
                    # would be there twice.
                    os.truncate(path, state[name] if state else 0)
            for line in read_lines(self.folder / FILES["events"]) if state else ():
                self._count(line["event"], line.get("seconds") or 0.0)
                self.ahead = line.get("ahead", self.ahead)

    def _count(self, kind: str, seconds: float) -> None:
        times, total = self.spent.get(kind, (0, 0.0))
        self.spent[kind] = (times + 1, total + seconds)

    def check(self, state: dict[str, Any]) -> None:
        """Raise CheckpointError where the files are not those that a checkpoint was taken with."""
        for name, file_name in FILES.items():
            path = self.folder / file_name
            size = path.stat().st_size if path.is_file() else 0
            # A longer file has the lines of later steps, which are cut off; lines that are missing cannot be
            # restored.
            if size < state[name]:
                raise CheckpointError(
                    f"{path} has {size} bytes, the checkpoint was taken at {state[name]}; it was cut short. "
                    "Restore it from a copy, or start again in a new folder."
                )
            read_lines(path, size=state[name])

    def step(self, loss: Tensor, **values: object) -> None:
        """Note one optimizer step; tensors stay on their device until `flush`."""
        self._losses.append(loss.detach().float())
        self._steps.append({**values, "seconds": round(self.seconds, 3)})

    def evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        """Note the results of an evaluation after `step` steps; to be flushed before."""
        self._append("metrics", [{"step": step, **metrics, "seconds": round(self.seconds, 3)}])

    def event(self, kind: str, step: int, seconds: float, **what: object) -> None:
        """Note a decision: when, what it cost, what changed."""
        self._show(kind, seconds, what)
        self._count(kind, seconds)
        if isinstance(ahead := what.get("ahead"), dict):
            self.ahead = ahead
        self._append("events", [{"event": kind, "step": step, "seconds": round(seconds, 4), **what}])

    def _show(self, kind: str, seconds: float, what: dict[str, Any]) -> None:
        if kind in NOT_DECIDING:
            return
        self.numbers["deciding_seconds"] = self.numbers.get("deciding_seconds", 0.0) + seconds
        self.numbers |= {name: what[name] for name in TRACKED if isinstance(what.get(name), int | float)}
        if kind == "layers":
            scores, active = what["scores"], what["active"]
            self.numbers["active_layers"] = len(active)
            self.layers = {
                f"layer_score/{n}": score for n, score in enumerate(scores) if math.isfinite(score)
            }
            self.layers |= {f"layer_active/{n}": float(n in active) for n in range(len(scores))}

    def flush(self, *, check_gradient: bool = True) -> None:
        """Write the steps noted so far; a collective call where there are several ranks.

        Args:
            check_gradient: whether a gradient norm that is not finite is an error, as a loss always is.

        Raises:
            NonFiniteError: at the first step with such a value, after writing those before it.
        """
        if not self._steps:
            return
        # Read from the device once for all steps since the last flush: each read waits for the device.
        losses = torch.stack(self._losses)
        if dist.is_initialized() and dist.get_world_size() > 1:
            # One message for all steps since the last flush, and so as many on every rank.
            dist.all_reduce(losses)
            losses /= dist.get_world_size()
        lines = [_plain(line, loss) for line, loss in zip(self._steps, losses.tolist(), strict=True)]
        self._steps.clear()
        self._losses.clear()
        checked = {"loss": "loss", "grad_norm": "gradient norm"} if check_gradient else {"loss": "loss"}
        for number, line in enumerate(lines):
            for name, quantity in checked.items():
                if not math.isfinite(line.get(name, 0.0)):
                    # The steps before the broken one are true, and show how it came to be.
                    self._append("metrics", lines[:number])
                    raise NonFiniteError(line["step"], quantity, line[name])
        self._append("metrics", lines)
        self.latest = lines[-1]

    def state(self) -> dict[str, Any]:
        """Where both files stand, forced to disk; goes into a checkpoint. To be flushed before."""
        state: dict[str, Any] = {"run": self.run, "seconds": self.seconds}
        state |= {name: dict(getattr(self, name)) for name in NUMBER_FIELDS}
        for name, file_name in FILES.items():
            path = self.folder / file_name
            if self.writes and path.exists():
                with writing(path), path.open("rb") as file:
                    # Before the checkpoint that names these sizes: after a power cut the files must not be
                    # shorter than it says.
                    os.fsync(file.fileno())
                state[name] = path.stat().st_size
        return state

    def _append(self, name: str, lines: list[dict[str, Any]]) -> None:
        if self.writes and self._open and lines:
            text = "".join(
                json.dumps(_finite(line), ensure_ascii=False, allow_nan=False) + "\n" for line in lines
            )
            path = self.folder / FILES[name]
            with writing(path), path.open("ab") as file:
                file.write(text.encode("utf-8", "backslashreplace"))


def _wait_for_accelerator() -> None:
    # A device that has failed says so to whoever uses it, better than from here.
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):
            torch.cuda.synchronize()


def _plain(line: dict[str, Any], loss: float) -> dict[str, Any]:
    values = {name: value.item() if isinstance(value, Tensor) else value for name, value in line.items()}
    return values | {"loss": loss}


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: the gradient norm of an update that loss scaling skipped becomes null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
