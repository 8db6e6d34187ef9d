"""Pools in which the order matters by construction.

A Llama of 0.1 M weights learns tables. A sample is eight times (key, question, answer), and only the answers
are learned. Before, the model has seen random keys, questions and answers. Two domains of 640 samples,
`first` and `last`, in 40 units each; the target is validation data.

- conflict: `first` answers the question by one table, `last` by another; the target is the table of `last`.
  Whatever is learned last is forgotten least.
- prerequisite: `first` names the class of every key, `last` answers by the class for half of the keys; the
  target asks about the other half. Only `first` has the classes of those keys.
- unrelated: as the prerequisite, but the classes in `first` have nothing to do with the answers. This shows
  how much of the order's effect remains without the prerequisite.
"""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

KINDS = ("conflict", "prerequisite", "unrelated")
SAMPLES, BATCH, RATE = 640, 16, 3e-3
"""Samples of each domain; samples of a unit; Adam's learning rate."""
PAIRS, KEYS, CLASSES, ANSWERS = 8, 32, 4, 8
"""Keys in a sample; all keys; classes; answers."""
ASK, TELL, KEY = 1, 2, 3
CLASS, ANSWER = KEY + KEYS, KEY + KEYS + CLASSES
"""The first token of each kind; 0 is padding."""
RANDOM_STEPS = 100
"""Steps on random answers, which every run starts from."""
TARGETS = 32
"""Samples of the target."""


class Planted:
    """The samples of a kind and a seed: (n, 24) tokens of each domain and of the target."""

    def __init__(self, kind: str, seed: int) -> None:
        self.rng = rng = np.random.default_rng([KINDS.index(kind), seed])
        keys = np.arange(KEYS)
        if kind == "conflict":
            before = rng.integers(ANSWERS, size=KEYS)
            after = (before + 1 + rng.integers(ANSWERS - 1, size=KEYS)) % ANSWERS
            self.first = self._rows(SAMPLES, keys, ASK, ANSWER + before)
            self.last = self._rows(SAMPLES, keys, ASK, ANSWER + after)
            self.target = self._rows(TARGETS, keys, ASK, ANSWER + after)
            return
        classes = rng.permutation(KEYS) % CLASSES
        taught = rng.permutation(classes) if kind == "unrelated" else classes
        answers = ANSWER + rng.permutation(ANSWERS)[:CLASSES][classes]
        by_class = np.argsort(classes, kind="stable")
        self.first = self._rows(SAMPLES, keys, TELL, CLASS + taught)
        self.last = self._rows(SAMPLES, by_class[::2], ASK, answers)
        self.target = self._rows(TARGETS, by_class[1::2], ASK, answers)

    def _rows(self, count: int, keys: np.ndarray, question: int, answers: np.ndarray) -> np.ndarray:
        drawn = np.stack([self.rng.permutation(keys)[:PAIRS] for _ in range(count)])
        return _tokens(drawn, np.full_like(drawn, question), answers[drawn])

    def pool(self) -> Dataset:
        """Both domains, the first one first."""
        domain = ["first"] * SAMPLES + ["last"] * SAMPLES
        return Dataset.from_dict({**columns(np.concatenate([self.first, self.last])), "domain": domain})


def _tokens(keys: np.ndarray, questions: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(n, 3 PAIRS) tokens."""
    return np.stack([KEY + keys, questions, answers], axis=2).reshape(len(keys), -1)


def columns(rows: np.ndarray) -> dict[str, Any]:
    """Columns for a causal language model; only the answers have labels."""
    labels = np.full_like(rows, -100)
    labels[:, 2::3] = rows[:, 2::3]
    return {"input_ids": rows.tolist(), "labels": labels.tolist()}


def starting_model(seed: int) -> Any:
    """A model that knows which tokens are keys, questions and answers, and nothing else."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=ANSWER + ANSWERS, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32, pad_token_id=0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    optimizer = adamw(model)
    rng = np.random.default_rng([seed, 1])
    shape = (BATCH, PAIRS)
    for _ in range(RANDOM_STEPS):
        question = rng.choice([ASK, TELL], shape)
        class_tokens, answered = (
            CLASS + rng.integers(CLASSES, size=shape),
            ANSWER + rng.integers(ANSWERS, size=shape),
        )
        answer = np.where(question == TELL, class_tokens, answered)
        step(model, optimizer, _tokens(rng.integers(KEYS, size=shape), question, answer))
    return model


def adamw(model: Any) -> torch.optim.Optimizer:
    """A fresh optimizer."""
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)


def step(model: Any, optimizer: torch.optim.Optimizer, rows: np.ndarray, clip: float | None = None) -> None:
    """One optimizer step on a batch."""
    loss(model, rows).backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()


def loss(model: Any, rows: np.ndarray) -> torch.Tensor:
    """Mean loss of the answers."""
    tokens = torch.tensor(rows)
    logits = model(input_ids=tokens, use_cache=False).logits[:, 1::3]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 2::3].flatten())
