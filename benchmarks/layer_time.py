"""Step times of `layers.py`: all arms in one process, in turn, on the same batches.

    python benchmarks/layer_time.py JOB.json OUT.json

In each round every arm takes one step on the same micro-batch, so that whatever else the machine does falls
on all of them. Forward and backward (with the layer policy's own work: drawing, freezing, measuring) and the
optimizer's update are timed apart. How much of the backward pass a layer-wise arm saves depends on how low
its lowest active block lies, so its policy draws anew in every round.
"""

import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from layer_arms import Arm, Task, arms, task

from gradwise import Collator, LayerSwitch
from gradwise.atomic import write_json
from gradwise.data import Data, load
from gradwise.methods.layer_policy import LayerPolicy
from gradwise.run.model import load_model, load_tokenizer
from gradwise.training.adapter import with_adapter

Clock = dict[str, tuple[float, float]]
"""Wall-clock and processor seconds by stage."""


class Subject:
    """One arm ready to take steps."""

    def __init__(self, arm: Arm, base: Any, seed: int) -> None:
        model = copy.deepcopy(base)
        self.model = with_adapter(model, arm.adapter.method, arm.adapter.options) if arm.adapter else model
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        # The Trainer's default optimizer; a learning rate too low to change what is measured.
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.0, fused=True)
        self.switch = None
        if isinstance(arm.layers, LayerPolicy):
            self.switch = LayerSwitch(self.model, replace(arm.layers, period=1), self.optimizer, seed=seed)

    def probe(self, batch: dict[str, torch.Tensor]) -> tuple[float, float] | None:
        """Seconds of the pass that measures all layers, where the policy has one."""
        if self.switch is None or not self.switch.probing:
            return None
        return _timed(lambda: self._passes(batch))

    def step(self, batch: dict[str, torch.Tensor]) -> tuple[Clock, list[int]]:
        """One optimizer step of one micro-batch, and the layers that were active."""
        clock = {"passes": _timed(lambda: self._passes(batch)), "update": _timed(self._update)}
        return clock, list(self.switch.active) if self.switch else []

    def _passes(self, batch: dict[str, torch.Tensor]) -> None:
        if self.switch:
            self.switch.before_step()
        self.model(**batch).loss.backward()
        if self.switch:
            self.switch.after_backward()

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(made: Task, names: list[str], files: dict[str, str], rounds: int, seed: int) -> dict[str, Any]:
    """`rounds` timed steps of every arm after one that is not timed."""
    tokenizer = load_tokenizer(made.model)
    data = Data(train=files["train"], max_length=made.max_length)  # type: ignore[arg-type]
    samples, collate = (
        load(data, "train", tokenizer, progress=False).dataset,
        Collator.for_tokenizer(tokenizer),
    )
    batches = [
        collate([samples[n] for n in range(first, first + made.micro_batch)])
        for first in range(0, (rounds + 1) * made.micro_batch, made.micro_batch)
    ]
    transformers.set_seed(seed)
    base, known = load_model(made.model), arms(made.period)
    subjects = {name: Subject(known[name], base, seed) for name in names}
    probes = {name: seconds for name, subject in subjects.items() if (seconds := subject.probe(batches[0]))}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number, batch in enumerate(batches):
        for name, subject in subjects.items():
            clock, active = subject.step(batch)
            if number:
                found[name].append({**clock, "active": active})
    padded = [batch["input_ids"].numel() for batch in batches[1:]]
    return {"rounds": found, "probes": probes, "padded_tokens": padded, "threads": torch.get_num_threads()}


def main(job_path: str, out_path: str) -> None:
    """Time the arms of a job."""
    job = json.loads(Path(job_path).read_text())
    torch.set_num_threads(job["threads"])
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    made = Task(**{**task(job["task"]).__dict__, **job["overrides"]})
    write_json(Path(out_path), measure(made, job["arms"], job["files"], job["rounds"], job["seed"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
