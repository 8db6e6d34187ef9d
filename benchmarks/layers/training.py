"""Training runs of the layer benchmark in a process of their own: held-out loss, seconds, memory by part.

A run goes through gradwise's own data, model, arguments and Trainer. A subclass records sizes of tensors and
changes none:

- gradients: bytes of all `.grad` just before the update, the largest over the steps;
- optimizer state: bytes of all tensors in `optimizer.state` just after the update, the largest over the
  steps;
- activations: bytes of the storages saved for the backward pass, each once, without parameters, the largest
  over the micro-batches; GRASS's probe separately, whose activations are those of full training;
- peak: the highest resident memory of the process, minus that just after loading.
"""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import TrainerCallback

from benchmarks.common.clocks import timed
from benchmarks.common.memory import peak_over_start, saved_for_backward
from benchmarks.layers.arms import TASKS, Arm, Task, arms, recipe
from gradwise import Collator, Recipe, Trainer
from gradwise.data import load
from gradwise.errors import GradwiseError
from gradwise.evaluation.held_out import held_out_loss
from gradwise.report.reading import HELD_OUT_LOSS
from gradwise.run.model import load_model, load_tokenizer
from gradwise.structure import group_layers
from gradwise.training.arguments import training_arguments


@dataclass
class PeakParts:
    """Largest bytes of each part of a run's memory."""

    gradients: int = 0
    state: int = 0
    activations: int = 0
    probe_activations: int = 0

    def raise_to(self, name: str, size: int) -> None:
        """Keep the larger value."""
        setattr(self, name, max(getattr(self, name), size))


class SizeCallback(TrainerCallback):
    """Records the bytes of gradients and optimizer state around every update."""

    def __init__(self, parts: PeakParts) -> None:
        self.parts = parts

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ARG002
        self.parts.raise_to("gradients", gradient_bytes(model))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:  # noqa: ARG002
        self.parts.raise_to("state", state_bytes(optimizer))


class MeasuredTrainer(Trainer):
    """gradwise's trainer; records what the forward pass saves."""

    parts: PeakParts

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        switch = self.session.switch
        probing = switch is not None and switch.probing
        with saved_for_backward(model) as saved:
            loss = super().compute_loss(model, *args, **kwargs)
        self.parts.raise_to("probe_activations" if probing else "activations", saved[0])
        return loss


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of all gradients at present."""
    return sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


def state_bytes(optimizer: Any) -> int:
    """Bytes of all tensors in the optimizer's state."""
    inner = getattr(optimizer, "optimizer", optimizer)
    tensors = [value for state in inner.state.values() for value in state.values()]
    return sum(value.nbytes for value in tensors if isinstance(value, Tensor))


def predicted(model: nn.Module, draws: list[list[int]], drop: bool, embeddings: bool) -> dict[str, int]:
    """Bytes of gradients and AdamW state by arithmetic, for a run in which `draws` of layers were active.

    4 bytes per parameter for the gradient; 8 for the two moments, and 4 per tensor for its step count. With a
    layer policy: gradients of the largest draw; state of all layers visited so far, or (dropped) of the
    largest draw.
    """
    groups = group_layers(model)
    outside = list(groups.outside)
    if not draws:
        everything = [p for block in groups.blocks for p in block] + outside
        return {"gradients": _gradients(everything), "state": _state(everything)}
    always = outside if embeddings else []
    drawn = [[p for layer in draw for p in groups.blocks[layer]] + always for draw in draws]
    layers = sorted({layer for draw in draws for layer in draw})
    visited = [p for layer in layers for p in groups.blocks[layer]] + always
    state = max(map(_state, drawn)) if drop else _state(visited)
    return {"gradients": max(map(_gradients, drawn)), "state": state}


def _gradients(parameters: list[nn.Parameter]) -> int:
    return sum(4 * p.numel() for p in parameters)


def _state(parameters: list[nn.Parameter]) -> int:
    return sum(8 * p.numel() + 4 for p in parameters)


def run_all(
    name: str, overrides: dict[str, Any], files: dict[str, str], runs: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Runs one after the other.

    Args:
        name: of the task. overrides: of the task's settings. files: by part of the data. runs: arguments of
            `Runner.run`, with the name of the arm; None as its name for the loss before training.
    """
    runner, results = Runner(replace(TASKS[name](), **overrides), files), []
    for settings in runs:
        arm = settings.pop("arm")
        if arm is None:
            results.append(runner.untrained(settings["test"]))
        else:
            results.append(runner.run(arms(runner.task.period)[arm], **settings))
    return results


class Runner:
    """What the runs of a process share; every run has a fresh model."""

    def __init__(self, task: Task, files: dict[str, str]) -> None:
        self.task, self.files = task, files
        self.tokenizer = load_tokenizer(task.model)

    def run(self, arm: Arm, *, seed: int, steps: int, rate: float, test: str) -> dict[str, Any]:
        """Train once; `test` names the part of the data for the evaluation."""
        settings = recipe(
            self.task, arm, seed=seed, steps=steps, learning_rate=rate, train=self.files["train"],
            test=self.files[test],
        )  # fmt: skip
        transformers.set_seed(seed)
        with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as folder:
            trainer = self._trainer(settings, folder)
            try:
                with peak_over_start() as peak:
                    wall, cpu = timed(trainer.train)
            except GradwiseError as error:
                return {"learning_rate": rate, "loss": None, "problem": str(error)}
            lines = (Path(folder) / "events.jsonl").read_text().splitlines()
        return {
            "learning_rate": rate,
            "steps": trainer.state.global_step,
            **self._held_out(trainer.model, settings),
            "seconds": round(wall, 2),
            "processor_seconds": round(cpu, 2),
            **_memory(trainer.model, trainer.parts, peak[0], list(map(json.loads, lines)), arm),
        }

    def untrained(self, test: str) -> dict[str, Any]:
        """Held-out loss before training. It is the same for all arms, because a fresh adapter changes
        nothing."""
        full = arms(1)["full"]
        train, rest = self.files["train"], {"seed": 0, "steps": 1, "learning_rate": 1e-4}
        settings = recipe(self.task, full, train=train, test=self.files[test], **rest)
        return self._held_out(load_model(self.task.model), settings)

    def _held_out(self, model: Any, settings: Recipe) -> dict[str, Any]:
        samples: Any = load(settings.data, "validation", self.tokenizer, progress=False).dataset  # type: ignore[arg-type]
        loss = held_out_loss(model, self.tokenizer, samples, batch_tokens=1024, progress=False)[HELD_OUT_LOSS]
        tokens = sum(sum(label != -100 for label in sample["labels"][1:]) for sample in samples)
        return {"loss": loss.value, "held_out_tokens": tokens}

    def _trainer(self, settings: Recipe, folder: str) -> MeasuredTrainer:
        pool = load(settings.data, "train", self.tokenizer, progress=False)  # type: ignore[arg-type]
        arguments = training_arguments(
            settings.train, output_dir=Path(folder), seed=settings.seed, ranks=1, validation=False, bars=False
        )
        trainer = MeasuredTrainer(
            model=load_model(settings.model, settings.adapter),  # type: ignore[arg-type]
            args=arguments,
            train_dataset=pool.dataset,
            processing_class=self.tokenizer,
            data_collator=Collator.for_tokenizer(self.tokenizer),
            recipe=Recipe(layers=settings.layers, seed=settings.seed),
        )
        trainer.parts = PeakParts()
        trainer.add_callback(SizeCallback(trainer.parts))
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        return trainer


def _memory(
    model: Any, parts: PeakParts, peak: int, events: list[dict[str, Any]], arm: Arm
) -> dict[str, Any]:
    layers = [event for event in events if event["event"] == "layers"]
    draws = [event["active"] for event in layers]
    drop = getattr(arm.layers, "state", "keep") == "drop"
    embeddings = getattr(arm.layers, "embeddings", "always") == "always"
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.nbytes for p in model.parameters())
    return {
        "draws": draws,
        "probe_seconds": sum(event["seconds"] for event in events if event["event"] == "probe"),
        "trainable_at_once": max((event["trainable"] for event in layers), default=trainable),
        "memory": {"weights": weights, **vars(parts), "peak_over_loaded": peak},
        "arithmetic": predicted(model, draws, drop, embeddings),
    }
