"""Which arms are compared: selections with the reference, orders and layer policies with `full`."""

from pathlib import Path
from typing import Any

import pytest

from gradwise import Recipe, RecipeError
from gradwise.comparison.arms import parse_arms
from gradwise.comparison.pairs import check_pairs, differing, pairs_of

BASE = Recipe.from_dict(
    {
        "select": {"method": "grace", "fraction": 0.2},
        "layers": "grass",
        "anneal": "direct",
        "train": {"schedule": "wsd"},
    }
)


def against(words: str, reference: str = "random", requested: Any = (), base: Recipe = BASE) -> list[Any]:
    recipes = {arm.name: arm.recipe for arm in parse_arms(words.split(","), base)}
    found = pairs_of(recipes, reference, requested)
    return [(pair["arm"], pair["against"], *pair["differs"]) for pair in found]


def test_selections_with_the_reference_and_other_kinds_with_full() -> None:
    assert against("random,full,loss_top,easy_first,lisa,lora,anneal.random") == [
        ("full", "random", "select"),
        ("loss_top", "random", "select"),
        ("easy_first", "full", "order"),
        ("lisa", "full", "layers"),
        ("lora", "full", "adapter"),
        # Its decay is as long as that of the others, which have it without the phase.
        ("anneal.random", "full", "anneal"),
    ]


def test_the_place_among_the_arms_does_not_matter() -> None:
    assert ("lisa", "full", "layers") in against("lisa,random,full")


def test_without_full_an_arm_of_another_kind_is_compared_all_the_same_and_it_is_said() -> None:
    assert against("random,easy_first") == [("easy_first", "random", "select", "order")]
    assert against("random,loss_top+lisa,full")[0] == ("loss_top+lisa", "random", "select", "layers")


def test_full_twice_is_an_a_a_test_and_no_pair_occurs_twice() -> None:
    assert against("random,full,again=full") == [("full", "random", "select"), ("again", "full")]
    assert against("full,again=full", "full") == [("again", "full")]


def test_the_recipe_and_its_variants() -> None:
    assert against("recipe,recipe+all", "recipe") == [("recipe+all", "recipe", "layers")]


def test_settings_of_a_file_are_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rate.yaml").write_text("train: {learning_rate: 1.0e-3}")
    assert against("random,full,slow=lora+rate.yaml")[1] == ("slow", "full", "adapter", "train")


def test_how_signals_are_made_is_part_of_the_decision() -> None:
    other = Recipe.from_dict({"select": {"method": "grace", "fraction": 0.2}, "signals": {"grad_dim": 64}})
    assert differing(other, Recipe()) == ["select"]
    assert differing(Recipe.from_dict({"signals": {"grad_dim": 64}}), Recipe()) == ["signals"]


def test_requested_pairs_come_last_and_none_twice() -> None:
    requested = [("lisa", "random"), ("full", "lisa"), ("lisa", "grass")]
    assert against("random,full,lisa,grass", requested=requested)[3:] == [
        ("lisa", "random", "select", "layers"),
        ("lisa", "grass", "layers"),
    ]


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (("full", "lisa"), "--pairs: 'lisa' is none of the arms; found random, full."),
        (("full", "full"), "--pairs: full cannot be compared with itself"),
    ],
)
def test_mistakes(pair: tuple[str, str], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_pairs([pair], ["random", "full"])
    assert said in str(caught.value)
