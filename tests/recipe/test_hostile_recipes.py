"""Recipes that no well-meaning person writes: one sentence each, at once, and never a traceback.

What is accepted comes back the same through plain values and through a file.
"""

import os
import string
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradwise import Grass, Model, Recipe, RecipeError, Train
from gradwise.recipe import yaml_text
from gradwise.recipe.foreign_keys import adapter_config
from gradwise.text import masked

NINE = string.ascii_lowercase[:9]
LAUGHS = "".join(
    f"{letter}: &{letter} [{','.join([f'*{NINE[at - 1]}'] * 9)}]\n" for at, letter in enumerate(NINE) if at
)
MERGES = "".join(
    f"{letter}: &{letter}\n  <<: [{','.join([f'*{NINE[at - 1]}'] * 9)}]\n"
    for at, letter in enumerate(NINE)
    if at
)

DOCUMENTS = {
    # inside itself, deep, large
    "a: &a {b: *a}": r"line 1: \*a stands inside what it names",
    "a: &a [*a]": r"\*a stands inside what it names",
    "&a {a: *a}": r"\*a stands inside what it names",
    "a: &a\n  <<: *a\n": r"line 2: \*a stands inside what it names",
    "a: " + "[" * 60 + "]" * 60: "line 1: more than 50 levels",
    "a: " + "[" * 100_000: "levels of lists|nesting depth",
    "\n".join(" " * level + "a:" for level in range(3000)): "line 51: more than 50 levels",
    "a: &a [1,1,1,1,1,1,1,1,1]\n" + LAUGHS: "is too large for a recipe",
    "a: &a {x: 1}\n" + MERGES: "is too large for a recipe",
    "a: &a '" + "x" * 100_000 + "'\nb: [" + "*a," * 200 + "]": "is too large for a recipe",
    "a: 1\n" * 10_000_000: "is too large for a recipe, which holds at most 10 MB",
    "data: {train: [" + "3," * 2000 + "]}": "and more.$",
    # numbers
    "seed: 1" + "0" * 400: "seed: integers have at most 19 digits",
    "seed: 1" + "0" * 5000: "a number or truth value in it cannot be read",
    "seed: 4294967296": "seed: input should be less than 4294967296",
    "seed: -1": "seed: input should be greater than or equal to 0",
    "seed: 010": "seed: input should be a valid integer; found '010'",
    "seed: 1:30": "seed: input should be a valid integer; found '1:30'",
    "train: {weight_decay: .inf}": "train.weight_decay: input should be a finite number; found inf",
    "train: {learning_rate: 1e400}": "train.learning_rate: input should be a finite number",
    "seed: !!int x": "a number or truth value in it cannot be read",
    "seed: !!int ''": "a number or truth value in it cannot be read",
    "train: {bf16: !!bool x}": "a number or truth value in it cannot be read",
    # tags
    "seed: !!timestamp x": "could not determine a constructor",
    "seed: !!binary x": "could not determine a constructor",
    "a: !!python/object/apply:os.system [x]": "could not determine a constructor",
    # text
    'model: {name: "a\\0b"}': "model.name: text cannot hold NUL bytes",
    "model: {name: a\0b}": "not valid YAML: (control|special) characters are not allowed",
    '"a\\0b": 1': "a key: text cannot hold NUL bytes",
    '"a\\e[2J": 1': "unknown key a",
    'model: {name: "\\ud800"}': "invalid Unicode|unpaired surrogates",
    "train:\n\tepochs: 1": "line 2: not valid YAML",
    # keys
    "~: 2": "None: keys are words",
    "true: 2": "True: keys are words",
    "? [a]\n: 1": "unhashable key",
    "train: {lr_scheduler_kwargs: {1: 2}}": "train.lr_scheduler_kwargs.1: keys are words",
    "k" * 900 + ": 1": r"unknown key k+\.\.\.",
    # documents
    "a: 1\n---\nb: 2": "another document",
    "a: *x": "undefined alias",
    "%YAML 9.9\n---\na: 1": "incompatible YAML document",
    "seed: 2\n'seed': 2": "the key seed stands twice",
    "select: {method: [grace]}": "select.method: unknown method",
    # paths
    "model: {name: ./" + "a" * 300 + "}": "File name too long; give another path",
    "data: {train: " + "a/" * 3000 + "}": "File name too long; give another path",
    "metrics: {functions: [" + "a" * 300 + ".py:f]}": "File name too long; give another path",
    "data: {train: x.jsonl, chat_template: " + "a" * 300 + "}": "File name too long; give another path",
    # secrets
    "train: {hub_token: hf_x}": "train.hub_token is a secret, .*HF_TOKEN.*, also when a run is resumed",
    "train: {deepspeed: {x: {api_key: 3}}}": "train.deepspeed.x.api_key is a secret",
    "data: {train: 's3://me:pw@host/x.jsonl'}": r"looks like a secret, .*; found 's3://\*\*\*@host/x.jsonl'",
    "model: {name: x, revision: hf_" + "a" * 34 + "}": r"looks like a secret, .*; found '\*\*\*'",
}


class TestDocuments:
    @pytest.mark.parametrize(("text", "message"), DOCUMENTS.items(), ids=[text[:40] for text in DOCUMENTS])
    def test_are_refused_in_a_sentence(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        with pytest.raises(RecipeError, match=message) as caught:
            Recipe.load(path)
        assert len(str(caught.value)) < 2500
        assert "hf_" not in str(caught.value) and "pw" not in str(caught.value)

    @pytest.mark.parametrize("base", [yaml.SafeLoader, yaml_text._BASE])
    def test_read_alike_through_either_parser(self, base: Any) -> None:
        text = """
            numbers: [2e-5, 1.5e5, -1E+3, .5, 1_000, 1_0.5, 0x1f, 0, -7, .inf, +1]
            words: [no, yes, on, 010, 1:30, 2024-01-31, =, 1e, "2e-5", 'true', v1.5, 1.2.3, ., "", -, 0o7]
            others: [true, False, ~, null, ]
            merged: {<<: {a: 1}, b: 2}
        """
        found = yaml_text.parse(text, "here", yaml_text.loader_over(base))
        assert found["numbers"] == [2e-5, 1.5e5, -1e3, 0.5, 1000, 10.5, 31, 0, -7, float("inf"), 1]
        assert [type(word) for word in found["words"]] == [str] * 16
        assert found["others"] == [True, False, None, None]
        assert found["merged"] == {"a": 1, "b": 2}
        written = yaml_text.to_yaml(found)
        assert yaml_text.parse(written, "here", yaml_text.loader_over(base)) == found
        assert [type(word) for word in yaml.safe_load(written)["words"]] == [str] * 16

    @pytest.mark.parametrize("base", [yaml.SafeLoader, yaml_text._BASE])
    def test_keys_of_a_merged_mapping_are_no_duplicates(self, base: Any) -> None:
        """PyYAML merges the deeper mapping before it builds it, when a shallower one asks for it."""
        text = """
            train:
            - &base {path: a.jsonl, weight: 1}
            - &heavy {<<: *base, path: b.jsonl, weight: 2}
            validation: {<<: *heavy, path: v.jsonl}
        """
        found = yaml_text.parse(text, "here", yaml_text.loader_over(base))
        assert found["train"][1] == {"path": "b.jsonl", "weight": 2}
        assert found["validation"] == {"path": "v.jsonl", "weight": 2}
        for wrong in (text.replace("weight: 2", "path: c"), text.replace("v.jsonl", "v, path: w")):
            with pytest.raises(RecipeError, match="the key path stands twice"):
                yaml_text.parse(wrong, "here", yaml_text.loader_over(base))

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "broken").symlink_to("nowhere")
        (tmp_path / "circle").symlink_to("circle")
        for path, message in (
            (tmp_path / "pipe", "it is no regular file"),
            (Path("/dev/zero"), "it is no regular file"),
            (tmp_path / "broken", "No such file or directory"),
            (tmp_path / "circle", "Too many levels of symbolic links"),
            (tmp_path / "pipe" / "x", "Not a directory"),
            (tmp_path / ("x" * 300), "File name too long"),
            (Path("a\0b"), "embedded null byte"),
        ):
            with pytest.raises(RecipeError, match=f"^Cannot read the recipe .*{message}"):
                Recipe.load(path)


class TestOverrides:
    @pytest.mark.parametrize(
        "setting",
        ["", "=", "=1", "seed", "a.=1", ".a=1", "a..b=1", "seed=[", "seed={1: 2}", "seed=&x [*x]", "seed=*x",
         "seed=1" + "0" * 5000, "seed=", "seed=\0", "seed=\ud800", "seed=---\n---\n", "train.arguments.x=1",
         "seed.x=1", "train.epochs.x=1", "select.fraction=.5", "data.train.0.path=x", "__class__=1",
         "a." * 100 + "b=1", "a." * 40 + "b=1", "x" * 10_000 + "=1", "a=" + "[" * 10_000,
         "model.name=./" + "x" * 5000, "train.hub_token=hf_abc", "train.\x1b[2J=1", "seed==3", "seed=010",
         "seed=!!python/name:os.system", "data.train=s3://u:pw@h/x", "seed=4294967296", "metrics.tasks=[1]"],
        ids=lambda setting: repr(setting[:20]),
    )  # fmt: skip
    def test_odd_forms_are_refused_in_a_sentence(self, tmp_path: Path, setting: str) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_text("seed: 1\nselect: full\n")
        with pytest.raises(RecipeError) as caught:
            Recipe.load(path, [setting])
        assert len(str(caught.value)) < 500
        assert "hf_" not in str(caught.value) and "pw" not in str(caught.value)


class TestValues:
    """Every key of the schema with values of every kind, in `Recipe.from_dict`."""

    VALUES: tuple[Any, ...] = (
        None, True, 0, -1, 2**32, 10**400, 0.5, -1e308, float("nan"), "", "x", "no", "\ud800", "x" * 5000,
        "(", [], [None], {}, {"x": [{"y": 1}]}, {1: 2}, b"bytes",
    )  # fmt: skip

    @staticmethod
    @cache
    def places() -> dict[str, list[tuple[tuple[Any, ...], str]]]:
        """For each section, the way to every key (sections above it, and what they need), and the key."""
        schema = Recipe.schema()
        definitions = schema["$defs"] | {"Recipe": {"properties": schema["properties"]}}

        def below(node: Any) -> Iterator[tuple[str, bool]]:
            if "$ref" in node:
                yield node["$ref"].rpartition("/")[2], False
            if node.get("type") == "array":
                yield from ((name, True) for name, _ in below(node.get("items", {})))
            for branch in (*node.get("anyOf", ()), *node.get("oneOf", ())):
                yield from below(branch)

        def walk(name: str, way: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
            for key, node in definitions[name].get("properties", {}).items():
                yield way, key
                for inner, listed in below(node):
                    if "properties" not in definitions[inner]:  # an enumeration
                        continue
                    yield from walk(inner, (*way, (key, TestValues.smallest(definitions[inner]), listed)))

        found: dict[str, list[Any]] = {}
        for way, key in walk("Recipe", ()):
            found.setdefault(way[0][0] if way else "", []).append((way, key))
        lora = (("adapter", {"method": "lora"}, False),)
        found["adapter"] += [(lora, field.name) for field in fields(adapter_config("lora"))]
        return found

    @staticmethod
    def smallest(definition: Any) -> dict[str, Any]:
        """What a settings class cannot do without."""
        properties = definition["properties"]
        own = {
            key: properties[key]["const"] for key in ("method", "kind") if "const" in properties.get(key, {})
        }
        own |= {key: ["a", "b"] if key == "choices" else "r" for key in definition.get("required", ())}
        return own | ({"fraction": 0.5} if "fraction" in properties and own.get("method") != "full" else {})

    @staticmethod
    def recipe(way: tuple[Any, ...], key: str, value: Any) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        node = tree
        for name, smallest, listed in way:
            inner = dict(smallest)
            node[name] = [inner] if listed else inner
            node = inner
        node[key] = value
        return {"train": {"schedule": "wsd"}} | tree if "anneal" in tree else tree

    @pytest.mark.parametrize(
        "section",
        [
            "",
            "model",
            "data",
            "train",
            "adapter",
            "signals",
            "select",
            "order",
            "layers",
            "anneal",
            "metrics",
        ],
    )
    @pytest.mark.parametrize("share", [3, pytest.param(1, marks=pytest.mark.exhaustive)])
    def test_are_refused_in_a_sentence_or_come_back(self, section: str, share: int, tmp_path: Path) -> None:
        """Each key with every third value, another third from one key to the next."""
        tried = taken = 0
        for number, (way, key) in enumerate(self.places()[section]):
            for value in self.VALUES[number % share :: share]:
                tried += 1
                try:
                    recipe = Recipe.from_dict(self.recipe(way, key, value))
                except RecipeError as error:
                    assert len(str(error)) < 2500
                    continue
                taken += 1
                assert Recipe.from_dict(recipe.to_dict()) == recipe
                recipe.save(tmp_path / "recipe.yaml")
                try:
                    Recipe.load(tmp_path / "recipe.yaml")
                except RecipeError as error:
                    assert "File name too long" in str(error)
        assert tried > taken > 0

    @pytest.mark.parametrize("values", [None, [], "x", 3, {"seed": b"x"}, {"seed": object()}, {"a": {1, 2}}])
    def test_no_mapping_of_plain_values(self, values: Any) -> None:
        with pytest.raises(RecipeError, match=r"^recipe: "):
            Recipe.from_dict(values)

    def test_a_list_inside_itself(self) -> None:
        values: dict[str, Any] = {}
        values["model"] = values
        with pytest.raises(RecipeError, match="more than 50 levels"):
            Recipe.from_dict(values)

    def test_in_python_too(self) -> None:
        for make in (
            lambda: Model(name="a\0b"),
            lambda: Model(name="hf_" + "a" * 34),
            lambda: Grass(active=10**5000),
            lambda: Train(arguments={"hub_token": "abcdef"}),
            lambda: Recipe(seed=2**32),
        ):
            with pytest.raises(RecipeError) as caught:
                make()
            assert "abcdef" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--set train.hub_token=abc", "--set train.hub_token=***"),
        ("hub_token: abc, epochs: 3", "hub_token: *** epochs: 3"),
        ("https://me:pass@host/x?token=abc&b=3", "https://***@host/x?token=***&b=3"),
        ("hf_" + "a" * 34, "***"),
        (plain := "max_new_tokens=5 pad_token=</s> me@host tokenizer: x", plain),
    ],
)
def test_secrets_are_masked_and_nothing_else(text: str, shown: str) -> None:
    assert masked(text) == shown
