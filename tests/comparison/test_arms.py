"""Arms: words become recipes, and words that cannot are refused in a sentence."""

from pathlib import Path
from typing import Any, get_args

import pytest

from gradwise import DataError, Recipe, RecipeError
from gradwise.comparison.arms import ADAPTER, parse_arms, presets
from gradwise.comparison.compare import _check_measured_alike, _check_unchanged, compare
from gradwise.methods import Anneal, Layers, OrderBy, Select
from gradwise.recipe.tree import METHOD_SECTIONS

DECISIONS = (*METHOD_SECTIONS, ADAPTER)


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.from_dict(
        {
            "train": {"batch_size": 4, "learning_rate": 1e-3, "schedule": "wsd"},
            "select": {"method": "loss_top", "fraction": 0.3},
            "order": "easy_first",
            "layers": {"method": "grass", "active": 4, "period": 3, "temperature": 0.5},
        }
    )


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return lambda name, text: (tmp_path / name).write_text(text)


def arm(word: str, recipe: Recipe, **options: Any) -> Recipe:
    return parse_arms([word], recipe, **options)[0].recipe


def refusal(words: str, recipe: Recipe, **options: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_arms(words.split(","), recipe, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def decisions(recipe: Recipe) -> dict[str, Any]:
    return {section: getattr(recipe, section) for section in DECISIONS}


class TestPresets:
    def test_every_method_of_every_union_is_one(self) -> None:
        unions = {"select": Select, "order": OrderBy, "layers": Layers, "anneal": Anneal}
        for section, union in unions.items():
            for cls in get_args(get_args(union)[0]):
                assert section in presets()[cls.__dataclass_fields__["method"].default]
        assert presets()["lora"] == [ADAPTER]

    def test_every_preset_makes_a_recipe_with_its_method(self, recipe: Recipe) -> None:
        aimed = Recipe.from_dict(
            recipe.to_dict() | {"data": {"train": "train.jsonl", "target": "like.jsonl"}}
        )
        for name, sections in presets().items():
            for section in sections:
                found = getattr(arm(f"{section}.{name}", aimed), section)
                assert found.method == name

    def test_all_arms_are_measured_by_the_same_half(self, recipe: Recipe) -> None:
        values = recipe.to_dict() | {"data": {"train": "train.jsonl", "validation": "valid.jsonl"}}
        arms = parse_arms(["full", "dsir"], Recipe.from_dict(values), fraction=0.1)
        assert [each.recipe.to_dict()["data"]["target_share"] for each in arms] == [0.5, 0.5]
        (alone,) = parse_arms(["full"], Recipe.from_dict(values))
        assert alone.recipe.to_dict()["data"]["target_share"] is None

    def test_no_arm_is_measured_by_a_target_of_its_own(self, recipe: Recipe, write: Any) -> None:
        write("other.yaml", "data: {target: other.jsonl}")
        write("share.yaml", "data: {target_share: 0.2}")
        data = {"train": "train.jsonl", "target": "like.jsonl"}
        alone = Recipe.from_dict(recipe.to_dict() | {"data": data})
        assert "other has a data.target of its own" in refusal("full,other.yaml", alone)
        assert "an arm cannot set data.target_share" in refusal("share.yaml", alone)
        both = Recipe.from_dict(recipe.to_dict() | {"data": {**data, "validation": "valid.jsonl"}})
        assert len(parse_arms(["full", "other.yaml"], both)) == 2

    def test_another_number_of_samples_is_refused(self) -> None:
        known = {"recipe": {"shared": 0, "held_out": 12}}
        _check_measured_alike({"held_out": 12}, "dsir", known)
        with pytest.raises(DataError, match=r"10 held-out samples would measure dsir, and 12 .* recipe"):
            _check_measured_alike({"held_out": 10}, "dsir", known)

    def test_other_tokens_of_the_same_samples_are_refused(self) -> None:
        same, other = ({"held_out": 12, "fingerprints": {"held-out": name}} for name in ("a", "b"))
        _check_measured_alike(same, "short", {"recipe": same})
        with pytest.raises(DataError, match=r"other tokens or labels for short than for recipe"):
            _check_measured_alike(other, "short", {"recipe": same})

    def test_other_data_than_those_of_the_runs_are_refused(self, tmp_path: Path) -> None:
        before = {"fingerprints": {"training": "a", "held-out": "b"}}
        _check_unchanged(before, before, "recipe", tmp_path)
        _check_unchanged(before, {}, "recipe", tmp_path)  # of a version that kept none
        with pytest.raises(DataError, match=r"The training data of the recipe have changed since"):
            _check_unchanged({"fingerprints": {"training": "c", "held-out": "b"}}, before, "recipe", tmp_path)

    def test_full_is_full_data_shuffled_through_all_layers_whatever_the_recipe(self, recipe: Recipe) -> None:
        found = arm("full", recipe)
        assert decisions(found) == decisions(Recipe())
        assert found.train == recipe.train

    def test_the_recipes_own_method_brings_its_settings(self, recipe: Recipe) -> None:
        found = arm("grass", recipe)
        assert found.layers == recipe.layers
        assert found.select == Recipe().select

    def test_another_method_takes_over_the_settings_that_it_knows(self, recipe: Recipe) -> None:
        layers: Any = arm("lisa", recipe).layers
        assert (layers.active, layers.period) == (4, 3)
        static: Any = arm("static", recipe).layers
        assert static.temperature == 0.5

    def test_a_subset_is_as_large_as_the_recipes(self, recipe: Recipe) -> None:
        select: Any = arm("random", recipe).select
        assert (select.fraction, select.count) == (0.3, None)

    def test_a_budget_of_tokens_is_a_size_too(self):
        given = Recipe.from_dict({"select": {"method": "grace", "tokens": 900, "beta": 0.25}})
        (kept,) = parse_arms(["grace"], given)
        assert (kept.recipe.select.tokens, kept.recipe.select.beta) == (900, 0.25)  # type: ignore[union-attr]
        (sized,) = parse_arms(["grace"], given, fraction=0.1)
        assert (sized.recipe.select.tokens, sized.recipe.select.fraction) == (None, 0.1)  # type: ignore[union-attr]

    def test_a_size_can_be_given(self, recipe: Recipe) -> None:
        for known in (recipe, Recipe(), Recipe.from_dict({"select": {"method": "random", "count": 7}})):
            select: Any = arm("random", known, fraction=0.1).select
            assert (select.fraction, select.count) == (0.1, None)

    def test_a_subset_without_a_size_says_what_to_give(self) -> None:
        message = refusal("random", Recipe())
        assert "give --fraction 0.2, or a `select` with fraction or count in the recipe" in message

    def test_lora_is_the_recipes_own_adapter_if_that_is_one(self, recipe: Recipe) -> None:
        own = Recipe.from_dict({"adapter": {"method": "lora", "r": 3}})
        found = arm("lora", own).adapter
        assert found is not None and found.options == {"r": 3}
        other = arm("lora", recipe)
        assert other.adapter is not None and other.adapter.options == {}
        assert other.layers == Recipe().layers


class TestCombinations:
    def test_two_presets(self, recipe: Recipe) -> None:
        found = arm("loss_top+grass", recipe)
        assert (found.select, found.layers, found.order) == (recipe.select, recipe.layers, Recipe().order)
        assert parse_arms(["loss_top+grass"], recipe)[0].name == "loss_top+grass"

    def test_the_recipe_as_it_stands_and_with_one_decision_changed(self, recipe: Recipe) -> None:
        assert arm("recipe", recipe) == recipe
        found = arm("recipe+full", recipe)
        assert found.select == Recipe().select
        assert (found.order, found.layers) == (recipe.order, recipe.layers)

    def test_a_file_changes_the_recipe_as_it_stands(self, recipe: Recipe, write: Any) -> None:
        write("fast.yaml", "train: {learning_rate: 5.0e-3}")
        (found,) = parse_arms(["fast.yaml"], recipe)
        assert (found.name, found.recipe.train.learning_rate) == ("fast", 5e-3)
        assert found.recipe.train.batch_size == 4
        assert decisions(found.recipe) == decisions(recipe)

    @pytest.mark.parametrize("word", ["slow=lora+rate.yaml", "slow=rate.yaml+lora"])
    def test_a_file_refines_a_preset_in_either_order(self, recipe: Recipe, write: Any, word: str) -> None:
        write("rate.yaml", "train: {learning_rate: 5.0e-3}\nadapter: {r: 2}\n")
        (found,) = parse_arms([word], recipe)
        assert found.name == "slow"
        assert found.recipe.train.learning_rate == 5e-3
        assert found.recipe.adapter is not None and found.recipe.adapter.options == {"r": 2}
        assert found.recipe.layers == Recipe().layers

    def test_another_method_in_a_file_leaves_no_settings_of_the_old_one(
        self, recipe: Recipe, write: Any
    ) -> None:
        write("badam.yaml", "layers: {method: round_robin}")
        layers: Any = arm("badam.yaml", recipe).layers
        assert (layers.method, layers.active) == ("round_robin", 2)

    def test_paths_in_a_file_are_taken_from_where_it_lies(
        self, recipe: Recipe, write: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "arms").mkdir()
        write("arms/other.yaml", "data: {train: other.jsonl}")
        base = Recipe.from_dict({"data": {"train": "a.jsonl"}})
        data: Any = arm("arms/other.yaml", base).data
        assert data.train.path == str(tmp_path / "arms" / "other.jsonl")

    def test_two_names_for_the_same_are_an_a_a_test(self, recipe: Recipe) -> None:
        one, other = parse_arms(["full", "again=full"], recipe)
        assert one.recipe == other.recipe
        assert (one.name, other.name) == ("full", "again")


class TestMistakes:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ("randon", "unknown arm 'randon'; did you mean 'random'? Known: all, "),
            ("zebra", "unknown arm 'zebra'; Known: all, "),
            ("select.grass", "select knows no method 'grass'"),
            ("full+random", "in full+random, both full and random set select; leave one out."),
            ("lisa+full+grass", "both lisa and grass set layers"),
            ("full,full", "two arms are called 'full'; give one a name of its own, such as again=full."),
            ("=full", "'=full' names no arm"),
            ("full+", "'full+' names no arm"),
            ("a/b=full", "'a/b' cannot be an arm's name"),
            ("..=full", "'..' cannot be an arm's name"),
            ("nowhere.yaml", "Cannot read the recipe nowhere.yaml"),
        ],
    )
    def test_are_refused_in_a_sentence(self, recipe: Recipe, words: str, said: str) -> None:
        assert said in refusal(words, recipe, fraction=0.5)

    def test_a_size_that_no_arm_takes_is_refused(self, recipe: Recipe, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="--fraction is the size of presets"):
            compare(recipe, ["full", "lisa"], out=tmp_path / "c", fraction=0.25)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("seed: 3", "an arm cannot set seed: seeds are the comparison's (--seeds)."),
            ("data: {validation: x.jsonl}", "an arm cannot set data.validation"),
            ("data: {validation: {path: x.jsonl}}", "an arm cannot set data.validation"),
            ("train: {epochs: 3}", "an arm cannot set train.epochs: how long an arm trains follows from"),
            ("train: {max_steps: 3}", "an arm cannot set train.max_steps"),
            ("metrics: {batch_size: 3}", "an arm cannot set metrics"),
            ("train: {learning_rat: 3}", "train.learning_rat; did you mean 'learning_rate'?"),
        ],
    )
    def test_in_files(self, recipe: Recipe, write: Any, text: str, said: str) -> None:
        write("own.yaml", text)
        assert said in refusal("own.yaml", recipe)

    def test_two_parts_that_set_the_same_key(self, recipe: Recipe, write: Any) -> None:
        write("one.yaml", "train: {learning_rate: 1.0}\nlayers: {active: 1}")
        write("two.yaml", "train: {learning_rate: 2.0}")
        write("bare.yaml", "layers: lisa")
        assert "both one.yaml and two.yaml set train.learning_rate" in refusal("one.yaml+two.yaml", recipe)
        assert "both grass and bare.yaml set layers" in refusal("bare.yaml+grass", recipe)
        layers: Any = arm("grass+one.yaml", recipe).layers
        assert (layers.method, layers.active) == ("grass", 1)

    def test_a_method_of_two_sections_must_be_spelt(
        self, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = presets() | {"random": ["select", "order"]}
        monkeypatch.setattr("gradwise.comparison.arms.presets", lambda: known)
        assert "random could be several things; write select.random or order.random" in refusal(
            "random", recipe
        )
