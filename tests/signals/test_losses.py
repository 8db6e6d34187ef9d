"""A scoring run against one sample at a time in double precision; it restores the model as it was."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradwise import Collator, SignalError
from gradwise.signals import Signals, collect
from gradwise.signals.batching import batches

Samples = list[dict[str, Any]]
collect_losses = partial(collect, want="loss")


@pytest.fixture(scope="module")
def model(stories: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(stories)


@pytest.fixture(scope="module")
def samples(shared: Path, stories: Path) -> Samples:
    """Real stories and encyclopaedia text of 2 to 150 tokens, a prompt of varying length without labels."""
    tokenizer = AutoTokenizer.from_pretrained(stories)
    rng, made = np.random.default_rng(0), []
    for name in ("tinystories.txt", "wikitext2-test.raw.txt"):
        text = (shared / "data" / "text" / name).read_text()[2000:60_000]
        for start in range(0, 20_000, 1000):
            ids = tokenizer(text[start : start + 1000])["input_ids"][: int(rng.integers(2, 150))]
            prompt = int(rng.integers(0, max(1, len(ids) - 1)))
            made.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return made


@pytest.fixture(scope="module")
def collator(stories: Path) -> Collator:
    return Collator.for_tokenizer(AutoTokenizer.from_pretrained(stories))


@pytest.fixture(scope="module")
def measured(model: Any, samples: Samples, collator: Collator) -> Signals:
    return collect_losses(model, samples, collator, progress=False)


def oracle(model: Any, samples: Samples) -> NDArray[np.float64]:
    """One at a time, unpadded, in float64; the logarithm of the softmax spelt out in numpy."""
    exact = AutoModelForCausalLM.from_pretrained(model.name_or_path, dtype=torch.float64).eval()
    losses = []
    for sample in samples:
        with torch.no_grad():
            logits = exact(torch.tensor([sample["input_ids"]])).logits[0].numpy()
        log_p = logits - logits.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        each = [
            -log_p[place - 1, label]
            for place, label in enumerate(sample["labels"])
            if place and label != -100
        ]
        losses.append(np.mean(each))
    return np.array(losses)


def test_own_mean_losses_match_the_oracle(model: Any, samples: Samples, measured: Signals):
    assert measured.loss is not None
    assert measured.loss == pytest.approx(oracle(model, samples), rel=2e-5)
    assert len(set(measured.loss.round(3).tolist())) > 30


def test_counts_label_tokens_but_the_first(samples: Samples, measured: Signals):
    assert measured.num_tokens is not None
    assert measured.num_tokens.tolist() == [
        sum(x != -100 for x in sample["labels"][1:]) for sample in samples
    ]


def test_kinds_and_sizes(samples: Samples, measured: Signals):
    assert measured.loss is not None
    assert measured.num_tokens is not None
    assert measured.ok is not None
    assert len(measured) == len(measured.loss) == len(samples) == 40
    assert (measured.loss.dtype, measured.num_tokens.dtype, measured.ok.dtype) == (np.float32, np.int32, bool)
    assert measured.ok.all()


@pytest.mark.parametrize("batch_tokens", [1, 100, 1000, 10**6])
def test_batch_tokens_change_nothing_but_rounding(
    model: Any, samples: Samples, collator: Collator, measured: Signals, batch_tokens: int
):
    other = collect_losses(model, samples, collator, batch_tokens=batch_tokens, progress=False)
    assert other.loss == pytest.approx(measured.loss, rel=2e-5)
    assert other.num_tokens is not None
    assert np.array_equal(other.num_tokens, measured.num_tokens)  # type: ignore[arg-type]


def test_row_i_belongs_to_sample_i(model: Any, samples: Samples, collator: Collator, measured: Signals):
    backwards = collect_losses(model, samples[::-1], collator, progress=False)
    assert backwards.loss[::-1] == pytest.approx(measured.loss, rel=2e-5)  # type: ignore[index]


class TestGivenBack:
    def modes(self, model: nn.Module) -> dict[str, bool]:
        return {name: module.training for name, module in model.named_modules()}

    @pytest.fixture
    def mixed(self, stories: Path) -> Any:
        """Training, but for one block whose user froze it in evaluation mode; with dropout."""
        model = AutoModelForCausalLM.from_pretrained(stories, attention_dropout=0.5).train()
        model.model.layers[2].eval()
        return model

    def test_modes_module_by_module(self, mixed: Any, samples: Samples, collator: Collator):
        before = self.modes(mixed)
        assert set(before.values()) == {True, False}
        collect_losses(mixed, samples[:4], collator, progress=False)
        assert self.modes(mixed) == before

    def test_modes_also_when_it_raised(self, mixed: Any, samples: Samples):
        def broken(rows: Samples) -> dict[str, torch.Tensor]:
            assert not any(self.modes(mixed).values())
            raise RuntimeError("a collator that fails")

        before = self.modes(mixed)
        with pytest.raises(RuntimeError, match="a collator that fails"):
            collect_losses(mixed, samples[:4], broken, progress=False)
        assert self.modes(mixed) == before

    def test_no_dropout(self, mixed: Any, samples: Samples, collator: Collator, measured: Signals):
        losses = collect_losses(mixed, samples, collator, progress=False).loss
        assert losses == pytest.approx(measured.loss, rel=2e-5)

    def test_random_state(self, mixed: Any, samples: Samples, collator: Collator):
        torch.manual_seed(3)
        np.random.seed(3)
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
        collect_losses(mixed, samples[:4], collator, progress=False)
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index]

    def test_weights_gradients_and_what_requires_them(self, mixed: Any, samples: Samples, collator: Collator):
        mixed.model.embed_tokens.weight.requires_grad_(False)
        mixed.model.norm.weight.grad = torch.ones(64)
        before = {name: (p.clone(), p.requires_grad) for name, p in mixed.named_parameters()}
        collect_losses(mixed, samples[:4], collator, progress=False)
        for name, parameter in mixed.named_parameters():
            assert torch.equal(parameter, before[name][0])
            assert parameter.requires_grad == before[name][1]
            assert (parameter.grad is None) == (name != "model.norm.weight")

    def test_the_model_still_learns_afterwards(self, mixed: Any, samples: Samples, collator: Collator):
        """Tensors made in inference mode (a cached mask, say) must not leak into a later backward pass."""
        collect_losses(mixed, samples[:4], collator, progress=False)
        mixed(**collator(samples[:2])).loss.backward()
        assert mixed.model.embed_tokens.weight.grad.abs().sum() > 0

    def test_samples(self, model: Any, samples: Samples, collator: Collator):
        before = [{key: list(ids) for key, ids in sample.items()} for sample in samples]
        collect_losses(model, samples, collator, progress=False)
        assert samples == before


class TestBadSamples:
    def test_without_labels_is_set_aside_and_harms_no_other(
        self, model: Any, samples: Samples, collator: Collator, measured: Signals
    ):
        silent = {"input_ids": samples[0]["input_ids"], "labels": [-100] * len(samples[0]["labels"])}
        only_first = {"input_ids": [5, 6, 7], "labels": [5, -100, -100]}
        short = {"input_ids": [5], "labels": [5]}
        signals = collect_losses(model, [silent, *samples, only_first, short], collator, progress=False)
        assert signals.ok.tolist() == [False, *[True] * len(samples), False, False]  # type: ignore[union-attr]
        assert np.isnan(signals.loss[[0, -2, -1]]).all()  # type: ignore[index]
        assert signals.num_tokens[[0, -2, -1]].tolist() == [0, 0, 0]  # type: ignore[index]
        assert signals.loss[1:-2] == pytest.approx(measured.loss, rel=2e-5)  # type: ignore[index]

    def test_a_loss_that_is_not_finite_is_set_aside(
        self, stories: Path, samples: Samples, collator: Collator
    ):
        model = AutoModelForCausalLM.from_pretrained(stories, tie_word_embeddings=False)
        model.set_output_embeddings(nn.Linear(64, 512, bias=True))
        model.model.embed_tokens.weight.data[511] = torch.inf
        bad = {"input_ids": [1, 511, 7], "labels": [1, 511, 7]}
        clean = [sample for sample in samples if 511 not in sample["input_ids"]][:4]
        signals = collect_losses(model, [*clean, bad], collator, batch_tokens=10**6, progress=False)
        assert signals.ok.tolist() == [True, True, True, True, False]  # type: ignore[union-attr]

    @pytest.mark.parametrize("count", [1, 3])
    def test_no_usable_sample_is_an_error(self, model: Any, collator: Collator, count: int):
        silent = [{"input_ids": [5, 6, 7], "labels": [-100] * 3}] * count
        with pytest.raises(SignalError, match=f"None of the {count} samples could be measured"):
            collect_losses(model, silent, collator, progress=False)


class TestBatchesByLength:
    @given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 300))
    def test_every_sample_once_longest_first_within_the_budget(self, lengths: list[int], budget: int):
        sizes = np.array(lengths, dtype=np.int32)
        order = np.argsort(-sizes, kind="stable")
        cut = batches(order, sizes, budget)
        rows = [int(row) for batch in cut for row in batch]
        assert sorted(rows) == list(range(len(lengths)))
        assert np.all(np.diff(sizes[rows]) <= 0) if rows else not cut
        assert all(len(batch) == 1 or len(batch) * sizes[batch].max() <= budget for batch in cut)

    def test_no_more_batches_than_needed(self):
        assert [len(batch) for batch in batches(np.arange(10), np.full(10, 8, dtype=np.int32), 32)] == [
            4,
            4,
            2,
        ]


def test_require_says_who_misses_what():
    signals = Signals(2, loss=np.ones(2, dtype=np.float32))
    assert signals.require("loss", "anyone") is signals.loss
    with pytest.raises(SignalError, match="somebody needs the signal 'domain', which was not collected"):
        signals.require("domain", "somebody")
