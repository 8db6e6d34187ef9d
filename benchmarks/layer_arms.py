"""The arms, models and data of `layers.py`: what is compared, on what, and the recipe of each run."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from frame import DATA

from gradwise.demo import ASSETS, smollm2_recipe
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
    """Records; the last `tuning` of them are set aside for choosing learning rates."""
    test: Path
    largest: int | None
    """Only records with at most so many characters are used, in training and test alike; None takes all."""
    tuning: int
    held_out: int
    """The first so many test records are evaluated on."""
    max_length: int
    batch_size: int
    micro_batch: int
    steps: int
    period: int
    grids: dict[str, tuple[float, ...]]
    """Learning rates to choose from, by kind of arm."""


@dataclass(frozen=True)
class Arm:
    """One way to train, without its learning rate."""

    kind: str
    """Which of the task's learning-rate grids it chooses from."""
    layers: Any
    adapter: Adapter | None = None
    tuned_as: str | None = None
    """Takes the learning rate chosen for this other arm."""


def arms(period: int) -> dict[str, Arm]:
    """All arms by name, the reference first; two active blocks for a period of so many steps."""
    lisa = UniformLayers(active=2, period=period)
    grass = Grass(active=2, period=period, probe=1)
    return {
        "full": Arm("full", AllLayers()),
        "lora": Arm("light", AllLayers(), Adapter(method="lora", options=LORA_OPTIONS)),
        "lisa": Arm("light", lisa),
        "grass": Arm("light", grass),
        # As LISA's authors have it.
        "lisa-embeddings": Arm("light", UniformLayers(active=2, period=period, embeddings="always")),
        "grass-drop": Arm("light", Grass(active=2, period=period, probe=1, state="drop"), tuned_as="grass"),
    }


MAIN = ("full", "lora", "lisa", "grass")
"""Arms that get every seed; the others get the first one unless --arms names them."""


def task(name: str) -> Task:
    """`smollm2` (135 M parameters, GSM8K) or `stories` (0.26 M parameters, plays; seconds)."""
    return {"smollm2": _smollm2, "stories": _stories}[name]()


def _smollm2() -> Task:
    return Task(
        name="smollm2",
        model=smollm2_recipe().model,  # type: ignore[arg-type]
        train=DATA / "gsm8k" / "train.jsonl",
        test=DATA / "gsm8k" / "test.jsonl",
        largest=400,
        tuning=24,
        held_out=48,
        max_length=256,
        batch_size=8,
        micro_batch=4,
        steps=24,
        period=4,
        grids={"full": (3e-5, 1e-4, 3e-4), "light": (1e-4, 3e-4, 1e-3)},
    )


def _stories() -> Task:
    return Task(
        name="stories",
        model=Model(name=str(ASSETS / "stories260K")),
        train=ASSETS / "plays_train.jsonl",
        test=ASSETS / "plays_held_out.jsonl",
        largest=None,
        tuning=40,
        held_out=40,
        max_length=256,
        batch_size=8,
        micro_batch=4,
        steps=60,
        period=5,
        grids={"full": (1e-3, 3e-3, 1e-2), "light": (1e-3, 3e-3, 1e-2, 3e-2)},
    )


def write_data(made: Task, folder: Path) -> dict[str, str]:
    """Write the task's three slices as files for recipes to name: `train`, `tuning`, `held_out`."""
    records, test = _records(made.train, made.largest), _records(made.test, made.largest)
    slices = {
        "train": records[: -made.tuning],
        "tuning": records[-made.tuning :],
        "held_out": test[: made.held_out],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in slices.items():
        (folder / f"{name}.jsonl").write_text("".join(chosen))
    return {name: str(folder / f"{name}.jsonl") for name in slices}


def _records(path: Path, largest: int | None) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if largest is None:
        return lines
    return [line for line in lines if sum(len(str(text)) for text in json.loads(line).values()) <= largest]


def recipe(
    made: Task, arm: Arm, *, seed: int, steps: int, learning_rate: float, train: str, test: str
) -> Recipe:
    """The recipe of one run; the order of the samples depends on the seed only, so arms are paired."""
    return Recipe(
        model=made.model,
        data=Data(train=train, validation=test, max_length=made.max_length),  # type: ignore[arg-type]
        train=Train(
            batch_size=made.batch_size,
            learning_rate=learning_rate,
            schedule="cosine",
            arguments={
                "max_steps": steps,
                "per_device_train_batch_size": made.micro_batch,
                "warmup_steps": 0.1,
                "save_strategy": "no",
                "logging_steps": 1,
                "report_to": "none",
                "use_cpu": True,
            },
        ),
        adapter=arm.adapter,
        layers=arm.layers,
        seed=seed,
    )


def settings(made: Task) -> dict[str, Any]:
    """What all runs of a result file share, in plain values."""
    told = asdict(made)
    told["model"] = Path(made.model.name).name
    for part in ("train", "test"):
        path = Path(told[part])
        told[part] = "/".join(path.parts[-2:])
    told["lora"] = LORA_OPTIONS
    return told
