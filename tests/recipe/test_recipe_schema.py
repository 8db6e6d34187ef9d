"""The JSON schema that editors check recipes by agrees with what the recipe itself takes and refuses."""

from functools import cache
from typing import Any

import jsonschema
import pytest
from hypothesis import given

from gradwise import Recipe, RecipeError
from tests.recipe.strategies import EVERY_METHOD, METHODS, named, recipes


class TestSchema:
    @staticmethod
    @cache
    def validator() -> jsonschema.Draft202012Validator:
        return jsonschema.Draft202012Validator(Recipe.schema())

    def test_is_itself_valid(self):
        schema = Recipe.schema()
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        jsonschema.Draft202012Validator.check_schema(schema)

    @given(recipes)
    def test_accepts_what_a_recipe_writes(self, recipe: Recipe):
        self.validator().validate(recipe.to_dict())

    @pytest.mark.parametrize(
        ("section", "cls"), EVERY_METHOD, ids=lambda value: getattr(value, "__name__", value)
    )
    def test_accepts_every_method_and_its_bare_name(self, section: str, cls: Any):
        method = named(section, cls)
        self.validator().validate(Recipe(**{section: method}).to_dict())
        self.validator().validate({section: method.method})

    @pytest.mark.parametrize(
        "short",
        [
            {},
            {"train": {"eval_strategy": "steps", "optim": "adamw_torch", "report_to": ["none"]}},
            {"data": {"train": "a.jsonl", "validation": ["a", {"path": "b", "weight": 2}]}},
            {"adapter": {"method": "lora", "r": 16, "target_modules": ["q_proj"]}},
            {"model": {"name": "m"}, "seed": 3},
            {"metrics": {"tasks": ["hellaswag", {"kind": "lm_eval", "name": "mmlu", "shots": 5}]}},
            {
                "metrics": {
                    "tasks": [{"kind": "generate", "name": "a", "path": "b", "prompt": "c", "answer": "d"}]
                }
            },
            {"metrics": {"functions": ["m.py:f", {"path": "a.b:c", "better": "lower"}]}},
        ],
        ids=str,
    )
    def test_accepts_what_people_write(self, short: dict[str, Any]):
        Recipe.from_dict(short)
        self.validator().validate(short)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"trian": {}},
            {"train": {"epoch": 3}},
            {"train": {"weight_decy": 0.1}},
            {"train": {"output_dir": "x"}},
            {"train": {"batch_size": 0}},
            {"layers": "gras"},
            {"layers": {"method": "grass", "activ": 3}},
            {"layers": {"method": "grass", "active": "3"}},
            {"select": {"method": "random", "fraction": 2}},
            {"data": {"train": {"pth": "x"}}},
            {"model": {"dtype": "float32"}},
            {"seed": -1},
            {"metrics": {"tasks": [{"kind": "choose", "name": "a"}]}},
            {"metrics": {"tasks": [{"kind": "lm_eval", "name": "a", "shot": 1}]}},
            {"metrics": {"functions": [{"path": "a.b:c", "better": "more"}]}},
        ],
        ids=str,
    )
    def test_refuses_what_the_recipe_refuses(self, wrong: dict[str, Any]):
        with pytest.raises(RecipeError):
            Recipe.from_dict(wrong)
        assert not self.validator().is_valid(wrong)

    def test_describes_every_key_of_ours(self):
        schema = Recipe.schema()
        assert schema["properties"]["seed"]["description"] == "Random seed of the run."
        ours = [cls.__name__ for classes in METHODS.values() for cls in classes] + [
            "Model",
            "Data",
            "Source",
            "Allowed",
            "Metrics",
            "Generate",
            "Choice",
            "LmEval",
            "Function",
        ]
        for name in ours:
            assert all(described["description"] for described in schema["$defs"][name]["properties"].values())
        grass = schema["$defs"]["Grass"]["properties"]
        assert grass["active"]["description"] == "Layers updated at a time."
        assert grass["smoothing"]["description"].startswith("Weight alpha of a new measurement")
