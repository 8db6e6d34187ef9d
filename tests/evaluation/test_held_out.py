"""Held-out loss: exact, the same whatever the batches, and the domains make up the whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset

from gradwise import SignalError
from gradwise.evaluation.held_out import held_out_loss


def slowly(model: Any, rows: Any) -> float:
    """One sample at a time, in double precision: sum over label tokens / number of them."""
    model = model.double().eval()
    total, tokens = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        kept = labels != -100
        total -= float(logprobs[kept].gather(1, labels[kept, None]).sum())
        tokens += int(kept.sum())
    return total / tokens


@pytest.fixture
def rows(speeches: Dataset) -> Dataset:
    """20 samples of different lengths, the first tokens of some not to be learned."""
    few = speeches.select(range(20))
    return few.map(lambda row, n: {"labels": [-100] * (n % 4) + row["labels"][n % 4 :]}, with_indices=True)


def test_equals_a_slow_loop_in_double_precision(
    rows: Dataset, story_model: Callable[[], Any], tokenizer: Any
):
    scores = held_out_loss(story_model(), tokenizer, rows, batch_tokens=100, progress=False)
    assert list(scores) == [
        "held_out_loss",
        "held_out_loss/d0",
        "held_out_loss/d1",
        "held_out_loss/d2",
    ]
    for name, score in scores.items():
        _, _, domain = name.partition("/")
        of = [row for row in rows if not domain or row["domain"] == domain]  # type: ignore[call-overload]
        assert score.value == pytest.approx(slowly(story_model(), of), rel=1e-5)
        assert (score.better, score.samples) == ("lower", len(of))


def test_domains_make_up_the_whole(rows: Dataset, story_model: Callable[[], Any], tokenizer: Any):
    scores = held_out_loss(story_model(), tokenizer, rows, progress=False)
    tokens = dict.fromkeys(("d0", "d1", "d2"), 0)
    for row in rows:
        tokens[row["domain"]] += sum(label != -100 for label in row["labels"][1:])  # type: ignore[call-overload]
    together = sum(scores[f"held_out_loss/{domain}"].value * count for domain, count in tokens.items())
    assert together / sum(tokens.values()) == pytest.approx(scores["held_out_loss"].value, rel=1e-12)


def test_batches_make_no_difference(rows: Dataset, story_model: Callable[[], Any], tokenizer: Any):
    one, other = (
        held_out_loss(story_model(), tokenizer, rows, batch_tokens=size, progress=False)["held_out_loss"]
        for size in (1, 10_000)
    )
    assert one.value == pytest.approx(other.value, rel=1e-6)


@pytest.mark.parametrize("kind", ["one domain", "no domains", "a list"])
def test_one_domain_is_no_news(kind: str, rows: Dataset, story_model: Callable[[], Any], tokenizer: Any):
    given: Any = rows.filter(lambda row: row["domain"] == "d0")
    if kind != "one domain":
        given = given.remove_columns("domain")
    if kind == "a list":
        given = list(given)
    assert list(held_out_loss(story_model(), tokenizer, given, progress=False)) == ["held_out_loss"]


def test_samples_without_a_finite_loss_are_left_out_and_named(
    rows: Dataset, story_model: Callable[[], Any], tokenizer: Any
):
    model, messages = story_model(), []
    worst = rows[0]["input_ids"]
    others: list[Any] = [row for row in rows if not set(row["input_ids"]) & {worst[5]}]  # type: ignore[call-overload]
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.model.embed_tokens.weight[worst[5]] = torch.nan
    given = Dataset.from_list([rows[0] | {"origin": "held.jsonl:17"}, *others])
    scores = held_out_loss(model, tokenizer, given, progress=False, tell=messages.append)
    assert scores["held_out_loss"].samples == len(others)
    assert scores["held_out_loss"].value == pytest.approx(slowly(model, others), rel=1e-5)
    assert messages == [
        f"Warning: 1 of {len(given)} held-out samples have no finite loss and are left out of the score "
        "(first: held.jsonl:17)."
    ]


def test_a_model_without_a_finite_loss_is_no_score(
    rows: Dataset, story_model: Callable[[], Any], tokenizer: Any
):
    model = story_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(SignalError, match="the model's weights are unusable"):
        held_out_loss(model, tokenizer, rows, progress=False)
