"""Recipes: what goes in comes out, through files, bare names, overrides and relative paths."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings

from gradwise import Adapter, Data, Grass, Model, Recipe, RecipeError, Source, Train, baselines, demo
from gradwise.evaluation import Choice, Function, Generate, LmEval, Metrics
from gradwise.run.model import load_model
from tests.recipe.strategies import EVERY_METHOD, named, recipes


class TestRoundTrip:
    @given(recipes)
    def test_through_plain_values(self, recipe: Recipe):
        assert Recipe.from_dict(recipe.to_dict()) == recipe

    @settings(max_examples=40)
    @given(recipe=recipes.filter(lambda recipe: recipe.data is None and recipe.model is None))
    def test_through_a_file(self, tmp_path_factory: pytest.TempPathFactory, recipe: Recipe):
        recipe = replace(recipe, metrics=Metrics(batch_size=recipe.metrics.batch_size))
        path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
        recipe.save(path)
        assert Recipe.load(path) == recipe

    @settings(max_examples=40)
    @given(recipe=recipes)
    def test_what_is_saved_loads_to_the_same_with_paths_made_absolute(
        self, tmp_path_factory: pytest.TempPathFactory, recipe: Recipe
    ):
        path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
        recipe.save(path)
        loaded = Recipe.load(path)
        loaded.save(path)
        assert Recipe.load(path) == loaded
        assert replace(loaded, model=recipe.model, data=recipe.data, metrics=recipe.metrics) == recipe

    @pytest.mark.parametrize(
        ("section", "cls"), EVERY_METHOD, ids=lambda value: getattr(value, "__name__", value)
    )
    def test_every_method(self, write: Any, section: str, cls: Any):
        recipe = Recipe(**{section: named(section, cls)})
        path = write("")
        recipe.save(path)
        assert Recipe.load(path) == recipe

    def test_the_method_comes_first_and_everything_is_written_out(self, write: Any):
        path = write("")
        Recipe(layers=Grass(active=3), train=Train(arguments={"weight_decay": 0.1})).save(path)
        found = yaml.safe_load(path.read_text())
        assert list(found) == [
            "format",
            "model",
            "data",
            "train",
            "adapter",
            "signals",
            "select",
            "order",
            "layers",
            "weights",
            "anneal",
            "metrics",
            "seed",
        ]
        assert list(found["layers"])[:2] == ["method", "active"]
        assert found["layers"].keys() == {field.name for field in fields(Grass)}
        assert found["train"]["weight_decay"] == 0.1
        assert "arguments" not in found["train"]

    def test_the_file_means_the_same_to_other_yaml_readers(self, write: Any):
        path = write("")
        Recipe(
            model=Model(name="no", revision="12e4567"), train=Train(arguments={"eval_strategy": "no"})
        ).save(path)
        found = yaml.safe_load(path.read_text())
        assert (found["model"]["name"], found["model"]["revision"]) == ("no", "12e4567")
        assert found["train"]["eval_strategy"] == "no"
        assert found["train"]["learning_rate"] == 2e-5


class TestReading:
    @pytest.mark.parametrize(
        ("section", "cls"), EVERY_METHOD, ids=lambda value: getattr(value, "__name__", value)
    )
    def test_a_bare_method_name_will_do(self, write: Any, section: str, cls: Any):
        method = cls.__dataclass_fields__["method"].default
        if section == "select" and cls is not baselines.FullData:
            with pytest.raises(RecipeError, match=r"select: (give either|grace needs one of) "):
                Recipe.load(write(f"{section}: {method}"))
        else:
            assert getattr(Recipe.load(write(f"{section}: {method}")), section) == cls()

    @pytest.mark.parametrize(
        ("text", "value"), [("2e-5", 2e-5), ("2E-5", 2e-5), ("+1e-3", 1e-3), ("1_0e-3", 0.01), ("1", 1.0)]
    )
    def test_numbers_as_everyone_writes_them(self, write: Any, text: str, value: float):
        assert Recipe.load(write(f"train: {{learning_rate: {text}}}")).train.learning_rate == pytest.approx(
            value
        )

    def test_no_is_a_word(self, write: Any):
        assert Recipe.load(write("train: {save_strategy: no}")).train.arguments == {"save_strategy": "no"}

    def test_true_and_false_are_not(self, write: Any):
        train = Recipe.load(write("train: {bf16: true, gradient_checkpointing: False}")).train
        assert train.arguments == {"bf16": True, "gradient_checkpointing": False}

    def test_an_empty_mapping_is_all_defaults(self, write: Any):
        assert Recipe.load(write("{}")) == Recipe()

    def test_the_example_of_the_documentation(self, write: Any):
        recipe = Recipe.load(
            write(
                "model: {name: org/model, dtype: bfloat16}\n"
                "data:\n  train: {path: train.jsonl, format: auto}\n  validation: valid.jsonl\n"
                "train: {epochs: 2, batch_size: 32, learning_rate: 1e-4, schedule: wsd, decay: 0.1,\n"
                "        warmup_steps: 10}\n"
                "adapter: {method: lora, r: 16}\nselect: {method: random, fraction: 0.5}\norder: given\n"
                "layers: {method: grass, active: 4}\nseed: 7\n"
            )
        )
        assert recipe.model == Model(name="org/model", dtype="bfloat16")
        assert recipe.train == Train(
            epochs=2,
            batch_size=32,
            learning_rate=1e-4,
            schedule="wsd",
            decay=0.1,
            arguments={"warmup_steps": 10},
        )
        assert recipe.adapter == Adapter(options={"r": 16})
        assert (recipe.select, recipe.order) == (baselines.RandomSubset(fraction=0.5), baselines.GivenOrder())
        assert (recipe.layers, recipe.seed) == (Grass(active=4), 7)


class TestPaths:
    def test_from_where_the_recipe_stands(self, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        folder = tmp_path / "recipes"
        (folder / "model").mkdir(parents=True)
        (folder / "saved").mkdir()
        monkeypatch.chdir(tmp_path)
        path = write(
            "model: {name: model}\n"
            "data:\n  train: [a.jsonl, {path: ../b.parquet}, saved, org/hub, {path: org/hub}]\n"
            "  validation: ./c\n  chat_template: chat.jinja\n",
            "recipes/recipe.yaml",
        )
        recipe = Recipe.load(path.relative_to(tmp_path))
        assert recipe.model == Model(name=str(folder / "model"))
        assert recipe.data is not None
        paths = [source.path for source in recipe.data.train]  # type: ignore[union-attr]
        assert paths == [
            str(folder / "a.jsonl"),
            f"{folder}/../b.parquet",
            str(folder / "saved"),
            "org/hub",
            "org/hub",
        ]
        assert recipe.data.validation == Source(path=str(folder / "c"))
        assert recipe.data.chat_template == str(folder / "chat.jinja")

    def test_of_a_link_from_where_it_stands(self, write: Any, tmp_path: Path):
        (tmp_path / "link.yaml").symlink_to(write("data: {train: ./a.jsonl}", "elsewhere/recipe.yaml"))
        recipe = Recipe.load(tmp_path / "link.yaml")
        assert recipe.data == Data(train=Source(path=str(tmp_path / "a.jsonl")))

    def test_of_metrics(self, write: Any, tmp_path: Path):
        path = write(
            "metrics:\n"
            "  tasks:\n"
            "    - {name: a, kind: generate, path: a.jsonl, prompt: p, answer: a}\n"
            "    - {name: b, kind: choice, path: org/hub, prompt: p, answer: a, choices: c}\n"
            "    - {kind: lm_eval, name: c, folder: tasks}\n"
            "    - hellaswag\n"
            "  functions: [mine.py:f, {path: ../mine.py:g, better: lower}, package.module:h]\n",
            "recipes/recipe.yaml",
        )
        folder, metrics = tmp_path / "recipes", Recipe.load(path).metrics
        a, b, c, d = metrics.tasks
        assert isinstance(a, Generate) and isinstance(b, Choice) and isinstance(c, LmEval)
        assert (a.path, b.path, c.folder) == (f"{folder}/a.jsonl", "org/hub", f"{folder}/tasks")
        assert d == LmEval(name="hellaswag")
        assert metrics.functions == [
            Function(path=f"{folder}/mine.py:f"),
            Function(path=f"{folder}/../mine.py:g", better="lower"),
            Function(path="package.module:h"),
        ]

    def test_absolute_and_home_paths(self, write: Any, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HOME", "/somewhere")
        recipe = Recipe.load(write("model: {name: /models/m}\ndata: {train: ~/a.jsonl}"))
        assert recipe.model == Model(name="/models/m")
        assert recipe.data == Data(train=Source(path="/somewhere/a.jsonl"))

    def test_a_template_written_out_is_no_path(self, write: Any):
        recipe = Recipe.load(write('data: {train: a.jsonl, chat_template: "{{ messages }}"}'))
        assert recipe.data is not None
        assert recipe.data.chat_template == "{{ messages }}"

    def test_hub_names_stay(self, write: Any):
        assert Recipe.load(write("model: {name: gpt2}")).model == Model(name="gpt2")

    def test_overrides_are_from_the_working_directory(
        self, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        (tmp_path / "elsewhere" / "m").mkdir(parents=True)
        path = write("model: {name: m}\ndata: {train: a.jsonl, validation: a.jsonl}", "recipes/recipe.yaml")
        monkeypatch.chdir(tmp_path / "elsewhere")
        recipe = Recipe.load(path, ["data.train=b.jsonl", "model.name=m"])
        assert recipe.model == Model(name=str(tmp_path / "elsewhere" / "m"))
        assert recipe.data == Data(
            train=Source(path=str(tmp_path / "elsewhere" / "b.jsonl")),
            validation=Source(path=str(tmp_path / "recipes" / "a.jsonl")),
        )

    def test_anchored_from_python(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)
        recipe = Recipe(data=Data(train=Source(path="a.jsonl")), layers=Grass(active=3))
        assert recipe.anchored() == replace(recipe, data=Data(train=Source(path=str(tmp_path / "a.jsonl"))))


class TestOverrides:
    @pytest.mark.parametrize(
        ("text", "overrides", "expected"),
        [
            ("layers: {method: grass, active: 2}", ["layers.active=4"], {"layers": Grass(active=4)}),
            ("layers: grass", ["layers.active=4"], {"layers": Grass(active=4)}),
            ("{}", ["layers=grass"], {"layers": Grass()}),
            ("{}", ["layers=grass", "layers.active=4"], {"layers": Grass(active=4)}),
            ("{}", ["layers.active=4", "layers.method=grass"], {"layers": Grass(active=4)}),
            ("layers: {method: lisa, active: 3}", ["layers=grass"], {"layers": Grass()}),
            ("layers: lisa", ["layers={method: grass, active: 5}"], {"layers": Grass(active=5)}),
            ("layers: {method: grass, active: 3}", ["layers={method: grass}"], {"layers": Grass()}),
            ("layers: {method: grass, active: 3}", ["layers={active: 4}"], {"layers": Grass(active=4)}),
            (
                "layers: {method: grass, active: 3}",
                ["layers={method: grass}", "layers.active=4"],
                {"layers": Grass(active=4)},
            ),
            (
                "train: {epochs: 2, lr_scheduler_kwargs: {num_cycles: 2}, schedule: cosine_with_restarts}",
                ["train.lr_scheduler_kwargs={}", "train.schedule=cosine"],
                {"train": Train(epochs=2, schedule="cosine", arguments={"lr_scheduler_kwargs": {}})},
            ),
            (
                "data: {train: {path: /a, fields: {text: old, domain: kind}}}",
                ["data.train.fields={text: new}"],
                {"data": Data(train=Source(path="/a", fields={"text": "new"}))},
            ),
            (
                "data: {train: {path: /a, fields: {text: old, domain: kind}}}",
                ["data.train.fields.text=new"],
                {"data": Data(train=Source(path="/a", fields={"text": "new", "domain": "kind"}))},
            ),
            ("train: {epochs: 2}", ["train={batch_size: 4}"], {"train": Train(epochs=2, batch_size=4)}),
            ("train: {epochs: 2}", ["train={}"], {"train": Train()}),
            (
                "{}",
                ["train.learning_rate=2e-5", "train.weight_decay=0.1"],
                {"train": Train(arguments={"weight_decay": 0.1})},
            ),
            (
                "train: {weight_decay: 0.3}",
                ["train.weight_decay=0.1"],
                {"train": Train(arguments={"weight_decay": 0.1})},
            ),
            ("seed: 1", ["seed=2", "seed = 3"], {"seed": 3}),
            ("adapter: {r: 4}", ["adapter=null"], {"adapter": None}),
            ("{}", ["data.train.path=/a=b.jsonl"], {"data": Data(train=Source(path="/a=b.jsonl"))}),
            ("{}", ["train.run_name=no"], {"train": Train(arguments={"run_name": "no"})}),
        ],
    )
    def test_replace_what_the_file_says(
        self, write: Any, text: str, overrides: list[str], expected: dict[str, Any]
    ):
        assert Recipe.load(write(text), overrides) == Recipe(**expected)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("seed", "--set takes key=value, such as select.fraction=0.2; found 'seed'"),
            ("=3", "--set takes key=value"),
            ("layers..active=3", "--set takes key=value"),
            ("seed=[1", "--set seed: not valid YAML: "),
            ("seed.deeper=3", "seed: input should be a valid integer; found {'deeper': 3}"),
            ("layer.active=3", "unknown key layer; did you mean 'layers'?"),
            ("seed=", "seed: input should be a valid integer; found None"),
        ],
    )
    def test_mistakes(self, write: Any, override: str, message: str):
        with pytest.raises(RecipeError, match=re.escape(message)):
            Recipe.load(write("layers: grass"), [override])

    @pytest.mark.parametrize("pair", [["seed=1", "seed.x=2"], ["layers.active=4", "layers=grass"]])
    def test_one_that_would_be_lost_is_refused(self, write: Any, pair: list[str]):
        with pytest.raises(RecipeError, match=f"--set {pair[1].split('=')[0]}: .*already given"):
            Recipe.load(write("{}"), pair)


def test_adapter_keys_reach_peft(stories: Path):
    adapter = Adapter(method="lora", options={"r": 3, "lora_alpha": 5, "target_modules": ["q_proj"]})
    model = load_model(Model(name=str(stories)), adapter)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, set(config.target_modules), config.task_type) == (
        3,
        5,
        {"q_proj"},
        "CAUSAL_LM",
    )
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 10
    assert all("q_proj.lora_" in name for name in trained)


def test_an_adapter_that_does_not_fit_the_model_is_a_recipe_error(stories: Path):
    for options, reason in {
        ("target_modules", "no_such_module"): "lora cannot be used as it is set up .*no_such_module",
        ("target_modules", "["): "unterminated character set",
        ("bias", "some"): "Requested bias: some, is not implemented",
        ("megatron_config", ("x", 1)): "megatron",
    }.items():
        key, value = options
        given = dict([value]) if isinstance(value, tuple) else value
        with pytest.raises(RecipeError, match=rf"^adapter: .*{reason}"):
            load_model(Model(name=str(stories)), Adapter(options={key: given}))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"modules_to_save": ["lm_heads"]}, r"adapter\.modules_to_save: the model has no module lm_heads"),
        (
            {"rank_pattern": {"nowhere": 2}},
            r"adapter: The following rank_pattern keys .* ignored: \['nowhere'",
        ),
        ({"eva_config": {"rho": 2.0}}, "adapter: `eva_config` specified but will be ignored"),
    ],
)
def test_what_peft_would_ignore_is_refused(stories: Path, options: dict[str, Any], reason: str):
    with pytest.raises(RecipeError, match=reason):
        load_model(Model(name=str(stories)), Adapter(options=options))


def test_warnings_of_peft_are_shown_once(stories: Path):
    messages: list[str] = []
    load_model(Model(name=str(stories)), Adapter(method="ln_tuning"), tell=messages.append)
    assert len(messages) == 1 and messages[0].startswith("Warning: adapter: Unsupported layer type")


def test_the_demo_and_its_recipe_file_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from the model, which the demo takes from a package."""
    monkeypatch.setattr(demo, "_smollm2_folder", lambda: Path("anywhere"))
    shown = Recipe.load(Path(__file__).parents[2] / "recipes" / "all-four.yaml").to_dict()
    ran = demo.smollm2_recipe().to_dict()
    for values in (shown, ran):
        del values["model"]
        for part in ("train", "validation"):
            sources = values["data"][part]
            for source in sources if isinstance(sources, list) else [sources]:
                source["path"] = Path(source["path"]).name
    assert shown == ran
