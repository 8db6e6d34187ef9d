"""One training run of `layers.py` in a process of its own: held-out loss, wall-clock, memory by part.

    python benchmarks/layer_run.py JOB.json OUT.json

A process per run, so that its peak resident memory is its own. The run goes through gradwise's own data,
model, arguments and Trainer; what measures is a subclass that looks at the tensors and changes none:

- gradients: bytes of all `.grad` just before the update, the largest over the steps;
- optimizer state: bytes of all tensors in `optimizer.state` just after the update, the largest over the
  steps;
- activations: bytes of the storages saved for the backward pass, each once, parameters left out, the largest
  over the micro-batches; those of GRASS's probe apart, since they are those of full training;
- peak: the process' resident memory at its highest, less what it was just after loading.
"""

import ctypes
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from layer_arms import Arm, Task, arms, recipe, task
from torch import Tensor, nn
from transformers import TrainerCallback

from gradwise import Collator, Recipe, Trainer
from gradwise.atomic import write_json
from gradwise.data import load
from gradwise.errors import GradwiseError
from gradwise.run.model import load_model, load_tokenizer
from gradwise.structure import group_layers
from gradwise.training.arguments import training_arguments

STATUS = Path("/proc/self/status")
EVALUATION_ROWS = 4


# ---- memory ------------------------------------------------------------------------------------------------


@dataclass
class Parts:
    """Largest bytes seen of each part of a run's memory."""

    gradients: int = 0
    state: int = 0
    activations: int = 0
    probe_activations: int = 0
    own: set[int] = field(default_factory=set)
    """Storages of the parameters: saved for backward too, but there anyway."""

    @contextmanager
    def watching(self, probing: bool) -> Iterator[None]:
        """Add up what autograd saves for the backward pass in this block."""
        saved: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            yield
        name = "probe_activations" if probing else "activations"
        setattr(self, name, max(getattr(self, name), sum(saved.values())))


class Watch(TrainerCallback):
    """Notes the bytes of gradients and optimizer state around every update."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ARG002
        self.parts.gradients = max(self.parts.gradients, gradient_bytes(model))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:  # noqa: ARG002
        self.parts.state = max(self.parts.state, state_bytes(optimizer))


class WatchedTrainer(Trainer):
    """gradwise's trainer; the forward pass runs under the eyes of `parts`."""

    parts: Parts

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        switch = self.session.switch
        with self.parts.watching(probing=switch is not None and switch.probing):
            return super().compute_loss(*args, **kwargs)


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of all gradients at present."""
    return sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


def state_bytes(optimizer: Any) -> int:
    """Bytes of all tensors in the optimizer's state."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return sum(v.nbytes for held in inner.state.values() for v in held.values() if isinstance(v, Tensor))


def resident(what: str = "VmRSS") -> int:
    """Bytes of this process' resident memory, now (VmRSS) or at its highest since the last reset (VmHWM)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def settle() -> int:
    """Give freed memory back to the system, forget the highest so far, and return what is resident."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident()


# ---- arithmetic --------------------------------------------------------------------------------------------


def predicted(model: nn.Module, draws: list[list[int]], drop: bool, embeddings: bool) -> dict[str, int]:
    """Bytes of gradients and AdamW state by arithmetic, for a run in which `draws` of layers were active.

    4 bytes per parameter for the gradient; 8 for the two moments, and 4 per tensor for its step count. With
    layers drawn, gradients of the largest draw; state of all layers visited so far, or (dropped) of the
    largest draw.
    """
    groups = group_layers(model)
    outside = list(groups.outside)
    if not draws:
        everything = [p for block in groups.blocks for p in block] + outside
        return {"gradients": _gradients(everything), "state": _state(everything)}
    always = outside if embeddings else []
    at_once = [[p for layer in draw for p in groups.blocks[layer]] + always for draw in draws]
    visited = [
        p for layer in sorted({n for draw in draws for n in draw}) for p in groups.blocks[layer]
    ] + always
    state = max(map(_state, at_once)) if drop else _state(visited)
    return {"gradients": max(map(_gradients, at_once)), "state": state}


def _gradients(parameters: list[nn.Parameter]) -> int:
    return sum(4 * p.numel() for p in parameters)


def _state(parameters: list[nn.Parameter]) -> int:
    return sum(8 * p.numel() + 4 for p in parameters)


# ---- quality -----------------------------------------------------------------------------------------------


@torch.no_grad()
def held_out_loss(model: nn.Module, samples: Any, collate: Collator) -> tuple[float, int]:
    """Nats per label token over all samples, each token with the same weight, and the number of tokens."""
    training, total, tokens = model.training, 0.0, 0
    model.eval()
    order = sorted(range(len(samples)), key=lambda n: len(samples[n]["input_ids"]))
    for first in range(0, len(order), EVALUATION_ROWS):
        batch = collate([samples[n] for n in order[first : first + EVALUATION_ROWS]])
        targets = batch.pop("labels")[:, 1:].reshape(-1)
        logits = model(**batch).logits[:, :-1].flatten(0, 1).float()
        total += nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        tokens += int((targets != -100).sum())
    model.train(training)
    return total / tokens, tokens


# ---- the run -----------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """What one process needs for its runs: loaded once, the model fresh for each run."""

    made: Task
    files: dict[str, str]

    def __post_init__(self) -> None:
        self.tokenizer = load_tokenizer(self.made.model)
        self.collate = Collator.for_tokenizer(self.tokenizer)

    def run(self, arm: Arm, *, seed: int, steps: int, rate: float, test: str, folder: str) -> dict[str, Any]:
        """Train once; `test` names the slice to evaluate on, before and after."""
        ours = recipe(
            self.made,
            arm,
            seed=seed,
            steps=steps,
            learning_rate=rate,
            train=self.files["train"],
            test=self.files[test],
        )
        transformers.set_seed(seed)
        trainer = self._trainer(ours, folder)
        held_out = load(ours.data, "validation", self.tokenizer, progress=False).dataset  # type: ignore[arg-type]
        model, parts = trainer.model, trainer.parts
        before, wall, cpu = settle(), time.perf_counter(), time.process_time()
        try:
            trainer.train()
        except GradwiseError as error:
            return {"learning_rate": rate, "loss": None, "problem": str(error)}
        wall, cpu, peak = time.perf_counter() - wall, time.process_time() - cpu, resident("VmHWM")
        loss, tokens = held_out_loss(model, held_out, self.collate)
        return {
            "learning_rate": rate,
            "steps": trainer.state.global_step,
            "loss": loss,
            "held_out_tokens": tokens,
            "seconds": round(wall, 2),
            "processor_seconds": round(cpu, 2),
            **_memory(model, parts, peak - before, _events(Path(folder)), arm),
        }

    def untrained(self, test: str) -> dict[str, Any]:
        """Held-out loss before training: the same for all arms, as a fresh adapter changes nothing."""
        data = recipe(
            self.made, arms(1)["full"], seed=0, steps=1, learning_rate=1e-4,
            train=self.files["train"], test=self.files[test],
        ).data  # fmt: skip
        held_out = load(data, "validation", self.tokenizer, progress=False).dataset  # type: ignore[arg-type]
        loss, tokens = held_out_loss(load_model(self.made.model), held_out, self.collate)
        return {"loss": loss, "held_out_tokens": tokens}

    def _trainer(self, ours: Recipe, folder: str) -> WatchedTrainer:
        assert ours.model is not None and ours.data is not None
        pool = load(ours.data, "train", self.tokenizer, progress=False)
        arguments = training_arguments(
            ours.train, output_dir=Path(folder), seed=ours.seed, ranks=1, validation=False, bars=False
        )
        model = load_model(ours.model, ours.adapter)
        trainer = WatchedTrainer(
            model=model,
            args=arguments,
            train_dataset=pool.dataset,
            processing_class=self.tokenizer,
            data_collator=self.collate,
            recipe=Recipe(layers=ours.layers, seed=ours.seed),
        )
        trainer.parts = Parts(own={p.untyped_storage().data_ptr() for p in model.parameters()})
        trainer.add_callback(Watch(trainer.parts))
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        return trainer


def _events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def _memory(model: Any, parts: Parts, peak: int, events: list[dict[str, Any]], arm: Arm) -> dict[str, Any]:
    draws = [event["active"] for event in events if event["event"] == "layers"]
    drop = getattr(arm.layers, "state", "keep") == "drop"
    embeddings = getattr(arm.layers, "embeddings", "always") == "always"
    return {
        "draws": draws,
        "probe_seconds": sum(event["seconds"] for event in events if event["event"] == "probe"),
        "trainable_at_once": max(
            (event["trainable"] for event in events if event["event"] == "layers"),
            default=sum(p.numel() for p in model.parameters() if p.requires_grad),
        ),
        "memory": {
            "weights": sum(p.nbytes for p in model.parameters()),
            "gradients": parts.gradients,
            "state": parts.state,
            "activations": parts.activations,
            "probe_activations": parts.probe_activations,
            "peak_over_loaded": peak,
        },
        "arithmetic": predicted(model, draws, drop, embeddings),
    }


def main(job_path: str, out_path: str) -> None:
    """Do the runs of a job one after the other and write their results as a list."""
    job = json.loads(Path(job_path).read_text())
    torch.set_num_threads(job["threads"])
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    made = Task(**{**task(job["task"]).__dict__, **job["overrides"]})
    bench, results = Bench(made, job["files"]), []
    for run in job["runs"]:
        with tempfile.TemporaryDirectory() as folder:
            if run["arm"] is None:
                results.append(bench.untrained(run["test"]))
                continue
            arm = arms(made.period)[run.pop("arm")]
            results.append(bench.run(arm, **run, folder=folder))
    write_json(Path(out_path), results)


if __name__ == "__main__":
    main(*sys.argv[1:])
