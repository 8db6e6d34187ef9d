"""Recipes: what goes in comes out, and every mistake is told in terms of the key, what was found, what is allowed."""

import re
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from gradwise import Adapter, Data, Grass, Model, Recipe, RecipeError, Source, Train, baselines
from gradwise.methods import Layers, OrderBy, Select
from gradwise.recipe import SignalSettings
from gradwise.training.arguments import DECIDED_HERE, micro_batch, training_arguments

settings.load_profile("ci")  # repeatable, and without deadlines: machines are shared

METHODS = {
    section: list(get_args(get_args(union)[0]))
    for section, union in {"select": Select, "order": OrderBy, "layers": Layers}.items()
}
EVERY_METHOD = [(section, cls) for section, classes in METHODS.items() for cls in classes]


def named(section: str, cls: Any) -> Any:
    """The method with its defaults, and the size that a part of the data cannot do without."""
    return cls(count=3) if section == "select" and cls is not baselines.FullData else cls()


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
tricky = st.sampled_from(
    ["no", "yes", "on", "1e5", "12e4567", "2e-5", "null", "~", "1", "0x1f", "2024-01-01", "a: b", "-"]
)
shares = st.floats(1e-6, 1)
policy = {
    "active": st.integers(1, 99),
    "period": st.integers(1, 99),
    "state": st.sampled_from(["keep", "drop"]),
}
probed = policy | {"probe": st.integers(1, 9)}
by_score = probed | {"temperature": st.floats(1e-3, 1e3), "floor": st.floats(0, 0.9)}
adapting = {"smoothing": st.floats(0.01, 1)}
layers = st.one_of(
    st.builds(baselines.AllLayers),
    st.builds(baselines.UniformLayers, **policy),
    st.builds(baselines.RoundRobinLayers, **policy),
    st.builds(baselines.StaticLayers, **by_score),
    st.builds(baselines.TopLayers, **probed, **adapting),
    st.builds(Grass, **by_score, **adapting),
)
parts = [baselines.RandomSubset, baselines.LossTop, baselines.LengthTop]
selects = st.one_of(
    st.just(baselines.FullData()),
    *(st.builds(part, fraction=shares) for part in parts),
    *(st.builds(part, count=st.integers(1, 10**9)) for part in parts),
)
sources = st.builds(
    Source,
    path=words | tricky,
    domain=st.none() | tricky,
    split=st.none() | words,
    weight=st.floats(1e-9, 1e9),
)
data = st.builds(
    Data,
    train=sources | st.lists(sources, min_size=1, max_size=3),
    validation=st.none() | sources,
    max_length=st.integers(2, 10**6),
    packing=st.booleans(),
    chat_template=st.none() | tricky,
)
trains = st.builds(
    Train,
    epochs=st.floats(1e-3, 1e3),
    batch_size=st.integers(1, 4096),
    learning_rate=st.floats(1e-12, 10),
    schedule=st.sampled_from(["linear", "wsd", "cosine", "polynomial"]),
    arguments=st.fixed_dictionaries(
        {},
        optional={
            "weight_decay": st.floats(0, 1),
            "max_steps": st.integers(1, 10**6),
            "bf16": st.booleans(),
            "eval_strategy": st.sampled_from(["no", "steps", "epoch"]),
            "run_name": words | tricky,
        },
    ),
)
models = st.builds(
    Model,
    name=words | tricky,
    revision=st.none() | tricky,
    dtype=st.sampled_from(["auto", "bfloat16", "float32"]),
)
adapters = st.builds(
    Adapter,
    options=st.fixed_dictionaries({}, optional={"r": st.integers(1, 64), "lora_alpha": st.integers(1, 9)}),
)
recipes = st.builds(
    Recipe,
    model=st.none() | models,
    data=st.none() | data,
    train=trains,
    adapter=st.none() | adapters,
    signals=st.builds(SignalSettings, batch_tokens=st.integers(1, 10**6)),
    select=selects,
    order=st.sampled_from([cls() for cls in METHODS["order"]]),
    layers=layers,
    seed=st.integers(0, 2**31),
)


class TestRoundTrip:
    @given(recipes)
    def test_through_plain_values(self, recipe: Recipe):
        assert Recipe.from_dict(recipe.to_dict()) == recipe

    @settings(max_examples=40)
    @given(recipe=recipes.filter(lambda recipe: recipe.data is None and recipe.model is None))
    def test_through_a_file(self, tmp_path_factory: pytest.TempPathFactory, recipe: Recipe):
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
        assert replace(loaded, model=recipe.model, data=recipe.data) == recipe

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
            "model",
            "data",
            "train",
            "adapter",
            "signals",
            "select",
            "order",
            "layers",
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
            with pytest.raises(RecipeError, match="select: give either fraction or count"):
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
                "data:\n  train: {path: train.jsonl, format: auto}\n  validation: valid.jsonl\n  max_length: 256\n"
                "train: {epochs: 2, batch_size: 32, learning_rate: 1e-4, schedule: wsd, decay: 0.1, warmup_steps: 10}\n"
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
            ("seed=[1", "--set seed: '[1' is not valid YAML"),
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


MISTAKES = [
    # unknown keys, near and far
    ("trian: {epochs: 1}", "unknown key trian; did you mean 'train'?"),
    (
        "zebra: 1",
        "unknown key zebra; known: adapter, data, layers, model, order, seed, select, signals, train.",
    ),
    ("train: {epoch: 1}", "unknown key train.epoch; did you mean 'epochs'?"),
    ("train: {weight_decy: 1}", "unknown key train.weight_decy; did you mean 'weight_decay'?"),
    ("train: {zebra: 1}", "unknown key train.zebra; see `gradwise schema`."),
    ("train: {arguments: {max_steps: 3}}", "unknown key train.arguments"),
    ("layers: {method: grass, activ: 3}", "unknown key layers.activ; did you mean 'active'?"),
    ("layers: {method: all, active: 3}", "unknown key layers.active; known: method."),
    ("data: {train: {pth: x}}", "unknown key data.train.pth; did you mean 'path'?"),
    ("data: {train: [a, {path: b, wieght: 2}]}", "unknown key data.train.1.wieght; did you mean 'weight'?"),
    ("data: {train: a, allow: {cuts: 0.1}}", "unknown key data.allow.cuts; did you mean 'cut'?"),
    ("model: {nam: x}", "unknown key model.nam; did you mean 'name'?"),
    ("adapter: {lora_alpa: 3}", "unknown key adapter.lora_alpa; did you mean 'lora_alpha'?"),
    ("adapter: {task_type: CAUSAL_LM}", "unknown key adapter.task_type"),
    ("signals: {batch_token: 3}", "unknown key signals.batch_token; did you mean 'batch_tokens'?"),
    ("1: 2", "unknown key 1; known"),
    ("2024-01-01: 2", "unknown key 2024-01-01; known"),
    # methods
    ("layers: gras", "layers.method: unknown method 'gras'; did you mean 'grass'?"),
    (
        "layers: {method: 3}",
        "layers.method: unknown method '3'; known: all, grass, lisa, round_robin, static, top.",
    ),
    (
        "order: sorted",
        "order.method: unknown method 'sorted'; known: easy_first, given, interleave, shuffle.",
    ),
    ("select: {method: lossy}", "select.method: unknown method 'lossy'; did you mean 'loss_top'?"),
    ("layers: {active: 3}", "layers needs a method; found {'active': 3}."),
    ("adapter: {method: lra}", "adapter.method: unknown method 'lra'; did you mean 'lora'?"),
    # types
    ("train: {epochs: three}", "train.epochs: input should be a valid number; found 'three'."),
    ('train: {learning_rate: "3"}', "train.learning_rate: input should be a valid number; found '3'."),
    ("train: {batch_size: 2.5}", "train.batch_size: input should be a valid integer; found 2.5."),
    ("train: {batch_size: true}", "train.batch_size: input should be a valid integer; found True."),
    ("train: {bf16: 1}", "train.bf16: input should be a valid boolean; found 1."),
    ("train: {weight_decay: heavy}", "train.weight_decay: input should be a valid number; found 'heavy'."),
    ("train: {save_steps: yes}", "train.save_steps: input should be a valid number; found 'yes'."),
    (
        "adapter: {r: many}",
        "adapter.r: input should be a valid integer, unable to parse string as an integer; found 'many'.",
    ),
    ("model: {name: 3}", "model.name: input should be a valid string; found 3."),
    ("data: {train: a, packing: yes}", "data.packing: input should be a valid boolean; found 'yes'."),
    ("seed: 1.5", "seed: input should be a valid integer; found 1.5."),
    ("train:", "train: input should be a mapping of keys; found None."),
    ("model: gpt2", "model: input should be a mapping of keys; found 'gpt2'."),
    ("layers: [grass]", "layers: input should be a mapping of keys; found ['grass']."),
    ("data: {train: 3}", "data.train: input should be a list; found 3."),
    ("data: {train: [3]}", "data.train.0: input should be a mapping of keys; found 3."),
    # ranges and words
    ("train: {batch_size: 0}", "train.batch_size: input should be greater than or equal to 1; found 0."),
    ("train: {epochs: 0}", "train.epochs: input should be greater than 0; found 0."),
    ("train: {epochs: .inf}", "train.epochs: input should be a finite number; found inf."),
    ("train: {learning_rate: .nan}", "train.learning_rate: input should be a finite number; found nan."),
    ("train: {schedule: wsd, decay: 2}", "train.decay: input should be less than or equal to 1; found 2."),
    ("train: {schedule: lineal}", "train.schedule: unknown schedule 'lineal'; did you mean 'linear'?"),
    (
        "layers: {method: grass, active: -1}",
        "layers.active: input should be greater than or equal to 1; found -1.",
    ),
    (
        "layers: {method: grass, embeddings: some}",
        "layers.embeddings: input should be 'never', 'always' or 'sampled'; found 'some'.",
    ),
    ("model: {name: x, dtype: float8}", "'bfloat16' or 'float16'; found 'float8'."),
    (
        "data: {train: {path: x, fields: {promt: a}}}",
        "data.train.fields.promt: input should be 'text', 'prompt'",
    ),
    (
        "data: {train: x, max_length: 1}",
        "data.max_length: input should be greater than or equal to 2; found 1.",
    ),
    (
        "data: {train: x, allow: {cut: 2}}",
        "data.allow.cut: input should be less than or equal to 1; found 2.",
    ),
    (
        "data: {train: [a, {path: y, weight: -1}]}",
        "data.train.1.weight: input should be greater than 0; found -1.",
    ),
    (
        "signals: {batch_tokens: 0}",
        "signals.batch_tokens: input should be greater than or equal to 1; found 0.",
    ),
    ("seed: -1", "seed: input should be greater than or equal to 0; found -1."),
    # what is missing or contradicts itself
    ("model: {dtype: float32}", "model.name is missing; give it a value."),
    ("select: random", "select: give either fraction or count; found fraction=None, count=None."),
    ("select: {method: random, fraction: 0.2, count: 2}", "found fraction=0.2, count=2."),
    ("train: {decay: 0.2}", "train.decay belongs to schedule: wsd; found schedule: linear."),
]


class TestMistakes:
    @pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[text for text, _ in MISTAKES])
    def test_name_the_key_what_was_found_and_what_is_allowed(self, write: Any, text: str, message: str):
        path = write(text)
        with pytest.raises(RecipeError, match=re.escape(message)) as caught:
            Recipe.load(path)
        assert str(caught.value).startswith(f"{path}:")

    @pytest.mark.parametrize("key", sorted(DECIDED_HERE))
    def test_arguments_decided_here_are_refused_with_what_to_do(self, write: Any, key: str):
        with pytest.raises(
            RecipeError, match=re.escape(f"train.{key} cannot be set here: {DECIDED_HERE[key]}.")
        ):
            Recipe.load(write(f"train: {{{key}: 1}}"))

    def test_every_key_that_is_refused_exists(self):
        assert set(DECIDED_HERE) <= set(TrainingArguments.__dataclass_fields__) | {"local_rank"}

    def test_all_of_them_at_once(self, write: Any):
        with pytest.raises(RecipeError) as caught:
            Recipe.load(write("modle: {}\nseed: -1\nlayers: {method: grass, active: 0, activ: 3}\n"))
        assert len(str(caught.value).splitlines()) == 5

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a: [1\n", "line 2: not valid YAML: expected ',' or ']'"),
            (b"seed: 1\nseed: 2\n", "line 2: not valid YAML: the key seed stands twice."),
            (b"train:\n  epochs: 1\n  epochs: 2\n", "line 3: not valid YAML: the key epochs stands twice."),
            (b"a: !!python/object:os.system {}\n", "not valid YAML: could not determine a constructor"),
            (b"", "a recipe is a mapping of sections (model, data, train, ...); found None."),
            (b"[1, 2]", "found [1, 2]."),
            (b"hello", "found 'hello'."),
            (b"\xff\xfe\x00bad", "Cannot read the recipe"),
            (b"a: \x01", "not valid YAML"),
        ],
    )
    def test_files_that_are_no_recipe(self, tmp_path: Path, content: bytes, message: str):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=re.escape(message)) as caught:
            Recipe.load(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize(("name", "reason"), [("missing.yaml", "No such file"), (".", "Is a directory")])
    def test_files_that_cannot_be_read(self, tmp_path: Path, name: str, reason: str):
        with pytest.raises(RecipeError, match=f"Cannot read the recipe .*: {reason}"):
            Recipe.load(tmp_path / name)

    def test_the_same_key_in_different_sections_or_items_is_fine(self, write: Any):
        recipe = Recipe.load(
            write("data: {train: [{path: /a}, {path: /b}]}\nselect: {method: full}\norder: {method: given}")
        )
        assert recipe.order == baselines.GivenOrder()


class TestPython:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Grass(active=-1), "Grass.active: input should be greater than or equal to 1; found -1."),
            (
                lambda: Grass(embeddings="some"),
                "Grass.embeddings: input should be 'never', 'always' or 'sampled'",
            ),  # type: ignore[arg-type]
            (lambda: Train(epochs=0), "Train.epochs: input should be greater than 0; found 0."),
            (lambda: Train(arguments={"zebra": 1}), "unknown key train.zebra"),
            (lambda: Train(arguments={"seed": 1}), "train.seed cannot be set here"),
            (lambda: Train(decay=0.1), "train.decay belongs to schedule: wsd"),
            (lambda: Model(name=3), "Model.name: input should be a valid string; found 3."),  # type: ignore[arg-type]
            (lambda: Data(train={"pth": 3}), "Data.train"),  # type: ignore[arg-type]
            (lambda: Adapter(method="lra"), "adapter.method: unknown method 'lra'"),
            (lambda: baselines.RandomSubset(), "select: give either fraction or count"),
            (lambda: Recipe(seed=-1), "Recipe.seed: input should be greater than or equal to 0; found -1."),
            (lambda: Recipe(layers="gras"), "Recipe.layers"),  # type: ignore[arg-type]
            (lambda: Recipe(layers={"method": "grass", "activ": 3}), "Recipe.layers.grass.activ"),  # type: ignore[arg-type]
        ],
    )
    def test_bad_values_are_refused_where_they_are_written(self, make: Any, message: str):
        with pytest.raises(RecipeError, match=re.escape(message)):
            make()

    def test_settings_are_frozen(self):
        for made, name in [(Grass(), "active"), (Recipe(), "seed"), (Train(), "epochs")]:
            with pytest.raises(AttributeError):
                setattr(made, name, 3)

    def test_a_path_stands_for_a_source(self):
        assert Data(train="a.jsonl").train == Source(path="a.jsonl")  # type: ignore[arg-type]

    def test_replace_checks_again(self):
        with pytest.raises(RecipeError, match=r"Grass\.active"):
            replace(Grass(), active=0)


def built(train: Train, **changes: Any) -> TrainingArguments:
    given = {"output_dir": Path("out"), "seed": 3, "ranks": 1, "validation": False, "bars": False}
    return training_arguments(train, **(given | changes))


class TestTrainingArguments:
    def test_aliases(self):
        made = built(Train(epochs=2.5, batch_size=32, learning_rate=3e-4, schedule="cosine"))
        assert (made.num_train_epochs, made.learning_rate, made.lr_scheduler_type, made.seed) == (
            2.5,
            3e-4,
            "cosine",
            3,
        )
        assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == (8, 4)
        assert made.output_dir == "out"
        assert made.disable_tqdm

    def test_any_other_argument_reaches_the_trainer(self, write: Any):
        recipe = Recipe.load(
            write(
                "train:\n  weight_decay: 0.1\n  max_grad_norm: 0.5\n  warmup_steps: 7\n  save_strategy: no\n"
                "  max_steps: 12\n  optim: sgd\n  logging_steps: 3\n  dataloader_num_workers: 2\n  adam_beta2: 9.5e-1\n"
                "  per_device_train_batch_size: 2\n  report_to: none\n  gradient_checkpointing: true\n"
            )
        )
        made = built(recipe.train)
        assert (made.weight_decay, made.max_grad_norm, made.warmup_steps, made.max_steps) == (0.1, 0.5, 7, 12)
        assert (made.save_strategy, made.optim, made.logging_steps, made.adam_beta2) == ("no", "sgd", 3, 0.95)
        assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == (2, 8)
        assert (made.dataloader_num_workers, made.report_to, made.gradient_checkpointing) == (2, [], True)

    def test_held_out_data_are_evaluated_unless_told_otherwise(self):
        assert (
            built(Train(), validation=True).eval_strategy,
            built(Train(), validation=True).eval_on_start,
        ) == ("epoch", True)
        silent = Train(arguments={"eval_strategy": "no", "eval_on_start": False})
        assert (
            built(silent, validation=True).eval_strategy,
            built(silent, validation=True).eval_on_start,
        ) == ("no", False)

    @pytest.mark.parametrize(
        "asked", [{"eval_strategy": "epoch"}, {"eval_strategy": "steps"}, {"eval_on_start": True}]
    )
    def test_evaluation_without_held_out_data_is_refused(self, asked: dict[str, Any]):
        with pytest.raises(RecipeError, match=r"asks for evaluation, but data\.validation is not given"):
            built(Train(arguments=asked))

    def test_what_the_trainer_refuses_is_a_recipe_error(self):
        with pytest.raises(RecipeError, match=r"^train: "):
            built(Train(arguments={"optim": "no_such_optimizer"}))

    @given(st.integers(1, 4096), st.integers(1, 16), st.none() | st.integers(1, 64))
    def test_micro_batches_make_up_the_batch(self, batch_size: int, ranks: int, asked: int | None):
        if batch_size % ranks or (asked and (batch_size // ranks) % asked):
            with pytest.raises(RecipeError, match=rf"train\.batch_size is {batch_size}, which"):
                micro_batch(batch_size, ranks, asked)
            return
        size = micro_batch(batch_size, ranks, asked)
        assert batch_size % (size * ranks) == 0
        divisors = [d for d in range(1, 9) if (batch_size // ranks) % d == 0]
        assert size == (asked or max(divisors))

    def test_the_batch_is_global(self):
        made = built(Train(batch_size=64), ranks=4)
        assert made.per_device_train_batch_size * made.gradient_accumulation_steps * 4 == 64


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
        ],
        ids=str,
    )
    def test_refuses_what_the_recipe_refuses(self, wrong: dict[str, Any]):
        with pytest.raises(RecipeError):
            Recipe.from_dict(wrong)
        assert not self.validator().is_valid(wrong)

    def test_describes_every_key_of_ours(self):
        schema = Recipe.schema()
        assert schema["properties"]["seed"]["description"] == "Decides everything that is left to chance."
        ours = [cls.__name__ for classes in METHODS.values() for cls in classes] + [
            "Model",
            "Data",
            "Source",
            "Allowed",
        ]
        for name in ours:
            assert all(described["description"] for described in schema["$defs"][name]["properties"].values())
        grass = schema["$defs"]["Grass"]["properties"]
        assert grass["active"]["description"] == "Layers updated at a time."
        assert grass["smoothing"]["description"].startswith("Weight alpha of a new measurement")


def test_adapter_keys_reach_peft(stories: Path):
    from gradwise.run.model import load_model

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
    from gradwise.run.model import load_model

    with pytest.raises(RecipeError, match=r"adapter: .*no_such_module"):
        load_model(Model(name=str(stories)), Adapter(options={"target_modules": ["no_such_module"]}))
