"""Step times of the layer benchmark: all arms in one process, in turn, on the same batches.

In each round every arm takes one step on the same micro-batch, so that other work on the machine affects all
of them. Forward/backward (with the layer policy's own work: drawing, freezing, measuring) and the optimizer's
update are timed separately. How much of the backward pass a layer policy saves depends on its lowest active
block, so it draws new layers in every round.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
import transformers

from benchmarks.common.clocks import timed
from benchmarks.layers.arms import TASKS, Arm, arms
from gradwise import Collator, LayerSwitch
from gradwise.data import Data, load
from gradwise.run.model import load_model, load_tokenizer
from gradwise.training.adapter import with_adapter

Batch = dict[str, torch.Tensor]


class Subject:
    """One arm, ready to take steps."""

    def __init__(self, arm: Arm, base: Any, seed: int) -> None:
        model = copy.deepcopy(base)
        self.model = with_adapter(model, arm.adapter.method, arm.adapter.options) if arm.adapter else model
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        # The Trainer's default optimizer, with a learning rate too low to change what is measured.
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.0, fused=True)
        self.switch = None
        if arm.layers.policy is not None:
            self.switch = LayerSwitch(self.model, replace(arm.layers, period=1), self.optimizer, seed=seed)

    def probe(self, batch: Batch) -> tuple[float, float] | None:
        """Seconds of the forward/backward that measures all layers, if the policy has one."""
        if self.switch is None or not self.switch.probing:
            return None
        return timed(lambda: self._forward_backward(batch))

    def step(self, batch: Batch) -> dict[str, Any]:
        """Seconds of one optimizer step on one micro-batch, by stage, and the active layers."""
        seconds = {"passes": timed(lambda: self._forward_backward(batch)), "update": timed(self._update)}
        return {**seconds, "active": list(self.switch.active) if self.switch else []}

    def _forward_backward(self, batch: Batch) -> None:
        if self.switch:
            self.switch.before_step()
        self.model(**batch).loss.backward()
        if self.switch:
            self.switch.after_backward()

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(
    name: str, overrides: dict[str, Any], files: dict[str, str], names: list[str], rounds: int, seed: int
) -> dict[str, Any]:
    """`rounds` timed steps of every arm after one that is not timed."""
    task = replace(TASKS[name](), **overrides)
    tokenizer = load_tokenizer(task.model)
    data = Data(train=files["train"], max_length=task.max_length)  # type: ignore[arg-type]
    samples: Any = load(data, "train", tokenizer, progress=False).dataset
    collate, size = Collator.for_tokenizer(tokenizer), task.micro_batch
    batches = [
        collate([samples[n] for n in range(first, first + size)])
        for first in range(0, (rounds + 1) * size, size)
    ]
    transformers.set_seed(seed)
    base, all_arms = load_model(task.model), arms(task.period)
    subjects = {arm: Subject(all_arms[arm], base, seed) for arm in names}
    probes = {arm: seconds for arm, subject in subjects.items() if (seconds := subject.probe(batches[0]))}
    steps: dict[str, list[dict[str, Any]]] = {arm: [] for arm in names}
    for number, batch in enumerate(batches):
        for arm, subject in subjects.items():
            step = subject.step(batch)
            if number:
                steps[arm].append(step)
    padded = [batch["input_ids"].numel() for batch in batches[1:]]
    return {"rounds": steps, "probes": probes, "padded_tokens": padded, "threads": torch.get_num_threads()}
