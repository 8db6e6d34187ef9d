"""What measures the samples of a run, where that is another model than the one that trains."""

from collections.abc import Callable
from typing import Any

import pytest

import gradwise as gw
from gradwise.data import Collator

Make = Callable[..., Any]
LARGEST = 511
"""Number of the last token of the story model."""


@pytest.fixture
def make(story_model: Any, arguments: Any, speeches: Any) -> Make:
    """A trainer over 32 samples that selects eight of them towards eight others, by a proxy's signals."""

    def make(*proxy: Any) -> Any:
        return gw.Trainer(
            story_model(),
            arguments(max_steps=1),
            train_dataset=speeches.select(range(32)),
            target_dataset=speeches.select(range(32, 40)),
            proxy=(story_model(), *proxy),
            recipe=gw.Recipe(select=gw.Grace(count=8, target="target", candidates="all", refresh_every=0)),
        )

    return make


def in_other_tokens(samples: Any) -> Any:
    """The same samples as another tokenizer might have them."""

    def change(row: dict[str, Any]) -> dict[str, Any]:
        ids = [LARGEST - token for token in row["input_ids"]]
        return {"input_ids": ids, "labels": ids}

    return samples.map(change)


def test_a_target_is_measured_in_the_tokens_of_the_proxy(make: Make, speeches: Any) -> None:
    """Also where these are the tokens of the training data, in which the target is given."""
    pool, target, collate = speeches.select(range(32)), speeches.select(range(32, 40)), Collator(0)
    same, stated = make(pool, collate), make(pool, collate, target)
    for trainer in (same, stated):
        trainer.train()
    assert same.session.plan.digest == stated.session.plan.digest
    other = make(in_other_tokens(pool), collate, in_other_tokens(target))
    other.train()
    assert other.state.global_step == 1


def test_a_target_in_other_tokens_than_the_proxys_is_refused(make: Make, speeches: Any) -> None:
    pool, target, collate = speeches.select(range(32)), speeches.select(range(32, 40)), Collator(0)
    others = in_other_tokens(pool)
    with pytest.raises(gw.RecipeError, match=r"other tokens than .* the fourth part of `proxy`"):
        make(others, collate).train()
    with pytest.raises(gw.DataError, match="has 7 samples, and the target 8"):
        make(others, collate, in_other_tokens(target).select(range(7))).train()
    unknown = target.map(lambda row: {"input_ids": [LARGEST + 1, *row["input_ids"][1:]]})
    with pytest.raises(gw.DataError, match="has token 512, and the model has embeddings for 0 to 511"):
        make(pool, collate, unknown).train()


def test_a_proxy_with_other_samples_than_the_run_is_refused(make: Make, speeches: Any) -> None:
    """It was found by an index beyond the samples, or not at all where there were more."""
    for count in (31, 33):
        with pytest.raises(gw.DataError, match=f"`proxy` has {count} samples, and the training data 32"):
            make(speeches.select(range(count)), Collator(0)).train()
