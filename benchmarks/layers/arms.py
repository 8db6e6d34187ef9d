"""Models, data, arms and recipes of the layer benchmark."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.folders import DATA
from benchmarks.common.smollm2 import STORIES, packaged
from gradwise.demo import ASSETS
from gradwise.methods import Grass
from gradwise.methods.baselines import AllLayers, UniformLayers
from gradwise.recipe import Adapter, Data, Model, Recipe, Train

LORA_OPTIONS = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
"""On all linear layers of the blocks; alpha = 2 r."""


@dataclass(frozen=True)
class Task:
    """A model and its data."""

    name: str
    model: Model
    train: Path
    """Records; the last `tuning` of them are reserved for choosing learning rates."""
    test: Path
    largest: int | None
    """Characters of the largest record that is used, in training and test; None for all records."""
    tuning: int
    held_out: int
    """Number of test records in the evaluation, from the first."""
    max_length: int
    batch_size: int
    micro_batch: int
    steps: int
    tuning_steps: int
    period: int
    grids: dict[str, tuple[float, ...]]
    """Learning rates to choose from, by kind of arm."""


@dataclass(frozen=True)
class Arm:
    """One way to train, without its learning rate."""

    kind: str
    """The task's grid of learning rates that it chooses from."""
    layers: Any
    adapter: Adapter | None = None
    tuned_as: str | None = None
    """Uses the learning rate chosen for this other arm."""


def arms(period: int) -> dict[str, Arm]:
    """All arms by name, the reference first; two active blocks for `period` steps."""
    return {
        "full": Arm("full", AllLayers()),
        "lora": Arm("light", AllLayers(), Adapter(method="lora", options=LORA_OPTIONS)),
        "lisa": Arm("light", UniformLayers(active=2, period=period)),
        "grass": Arm("light", Grass(active=2, period=period, probe=1)),
        # As LISA's authors have it.
        "lisa-embeddings": Arm("light", UniformLayers(active=2, period=period, embeddings="always")),
        "grass-drop": Arm("light", Grass(active=2, period=period, probe=1, state="drop"), tuned_as="grass"),
    }


MAIN = ("full", "lora", "lisa", "grass")
"""Arms with all seeds; the others have only the first one, unless --arms names them."""


TASKS = {
    "smollm2": lambda: Task(
        name="smollm2", model=packaged(), train=DATA / "gsm8k" / "train.jsonl",
        test=DATA / "gsm8k" / "test.jsonl", largest=400, tuning=24, held_out=48, max_length=256, batch_size=4,
        micro_batch=4, steps=20, tuning_steps=6, period=4,
        grids={"full": (3e-5, 1e-4, 3e-4), "light": (1e-4, 3e-4, 1e-3)},
    ),
    "stories": lambda: Task(
        name="stories", model=Model(name=str(STORIES)), train=ASSETS / "plays_train.jsonl",
        test=ASSETS / "plays_held_out.jsonl", largest=None, tuning=40, held_out=40, max_length=256,
        batch_size=8, micro_batch=4, steps=60, tuning_steps=30, period=5,
        grids={"full": (1e-3, 3e-3, 1e-2), "light": (1e-3, 3e-3, 1e-2, 3e-2)},
    ),
}  # fmt: skip


def write_data(task: Task, folder: Path) -> dict[str, str]:
    """Write the task's three parts as files that recipes name: `train`, `tuning`, `held_out`."""
    records, test = _records(task.train, task.largest), _records(task.test, task.largest)
    parts = {
        "train": records[: -task.tuning],
        "tuning": records[-task.tuning :],
        "held_out": test[: task.held_out],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return {name: str(folder / f"{name}.jsonl") for name in parts}


def _records(path: Path, largest: int | None) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if largest is None:
        return lines
    return [line for line in lines if sum(len(str(text)) for text in json.loads(line).values()) <= largest]


def recipe(
    task: Task, arm: Arm, *, seed: int, steps: int, learning_rate: float, train: str, test: str
) -> Recipe:
    """The recipe of one run. The order of the samples depends only on the seed, so that arms are paired."""
    arguments = {
        "max_steps": steps, "per_device_train_batch_size": task.micro_batch, "warmup_steps": 0.1,
        "save_strategy": "no", "logging_steps": 1, "report_to": "none", "use_cpu": True,
    }  # fmt: skip
    return Recipe(
        model=task.model,
        data=Data(train=train, validation=test, max_length=task.max_length),  # type: ignore[arg-type]
        train=Train(
            batch_size=task.batch_size, learning_rate=learning_rate, schedule="cosine", arguments=arguments
        ),
        adapter=arm.adapter,
        layers=arm.layers,
        seed=seed,
    )


def settings(task: Task) -> dict[str, Any]:
    """What all runs of a result file share, in plain values."""
    values = asdict(task)
    values["model"] = Path(task.model.name).name
    for part in ("train", "test"):
        values[part] = "/".join(Path(values[part]).parts[-2:])
    values["lora"] = LORA_OPTIONS
    return values
