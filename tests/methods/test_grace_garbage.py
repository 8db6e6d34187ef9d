"""GRACE on a dirty pool, with a real model: garbage is picked less often than it occurs."""

import json
import string
from typing import Any

import numpy as np
import pytest

import gradwise as gw

PLAYS, GARBAGE = 160, 20
"""Speeches, and of each of two kinds of garbage a tenth of the pool."""


@pytest.fixture(scope="module")
def dirty(stories: Any) -> tuple[Any, np.ndarray]:
    """Signals of speeches, random tokens and snippets of a few; and which is which."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rng = np.random.default_rng(0)
    tokenizer = AutoTokenizer.from_pretrained(stories)
    lines = (stories.parent / "plays_train.jsonl").read_text().splitlines()[:PLAYS]
    speeches = [tokenizer(json.loads(line)["text"])["input_ids"][:128] for line in lines]
    assert len(speeches) == PLAYS
    noise = [rng.integers(3, 512, 60).tolist() for _ in range(GARBAGE)]
    letters = list(string.ascii_lowercase)
    snippets = [tokenizer("".join(rng.choice(letters, 3)))["input_ids"] for _ in range(GARBAGE)]
    samples = [{"input_ids": one, "labels": one} for one in [*speeches, *noise, *snippets]]
    model = AutoModelForCausalLM.from_pretrained(stories)
    found = gw.collect(model, samples, want=["loss", "embedding", "head_norm"], progress=False)
    return found, np.repeat([0, 1, 2], [PLAYS, GARBAGE, GARBAGE])


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3])
def test_garbage_is_picked_less_often_than_it_occurs(dirty: tuple[Any, np.ndarray], fraction: float) -> None:
    found, kind = dirty
    picked = gw.Grace(fraction=fraction).select(found).indices
    share = np.bincount(kind[picked], minlength=3) / len(picked)
    assert share[1] <= 0.1
    assert share[2] <= 0.1


def test_the_trap_is_one(dirty: tuple[Any, np.ndarray]) -> None:
    """By loss, garbage is what is picked: without that the test above would show nothing."""
    found, kind = dirty
    picked = gw.Grace(fraction=0.1, importance="loss", by_length=False, trade_off=0.5).select(found).indices
    assert np.mean(kind[picked] > 0) > 0.5
