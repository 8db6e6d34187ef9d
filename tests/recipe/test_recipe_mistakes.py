"""Every mistake in a recipe is described by the key, what was found, and what is allowed."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from gradwise import Adapter, Data, Grass, Model, Recipe, RecipeError, Source, Train, baselines
from gradwise.recipe.foreign_keys import DECIDED_HERE

MISTAKES = [
    # unknown keys, near and far
    ("trian: {epochs: 1}", "unknown key trian; did you mean 'train'?"),
    (
        "zebra: 1",
        "unknown key zebra; known: adapter, anneal, data, layers, metrics, model, order, seed, select, "
        "signals, train, weights.",
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
    ("1: 2", "1: keys are words; put quotes around it if it is one."),
    ("2024-01-01: 2", "unknown key 2024-01-01; known"),
    # methods
    ("layers: gras", "layers.method: unknown method 'gras'; did you mean 'grass'?"),
    (
        "layers: {method: 3}",
        "layers.method: unknown method '3'; known: all, grass, lisa, round_robin, static, top.",
    ),
    (
        "order: sorted",
        "order.method: unknown method 'sorted'; known: balanced, d3, d3_published, easy_first, given, "
        "herding, influence, interleave, shuffle.",
    ),
    ("select: {method: loss_tip}", "select.method: unknown method 'loss_tip'; did you mean 'loss_top'?"),
    ("layers: {active: 3}", "layers needs a method; found {'active': 3}."),
    (
        "model: {name: a, attention: spda}",
        "model.attention: unknown implementation 'spda'; did you mean 'sdpa'?",
    ),
    ("model: {name: a, attention: paged|eager}", "model.attention: unknown implementation 'paged|eager'"),
    (
        "adapter: {method: poly}",
        "adapter.method: poly needs a task number for each sample; give another",
    ),
    ("adapter: {method: prefix_tuning}", "adapter.num_virtual_tokens is missing, which prefix_tuning needs"),
    ("adapter: {method: lra}", "adapter.method: unknown method 'lra'; did you mean 'lora'?"),
    # metrics
    ("metrics: {task: []}", "unknown key metrics.task; did you mean 'tasks'?"),
    (
        "metrics: {tasks: [hellaswag, {kind: generat, name: a}]}",
        "metrics.tasks.1.kind: unknown kind 'generat'; did you mean 'generate'?",
    ),
    ("metrics: {tasks: [{name: a}]}", "metrics.tasks.0 needs a kind; found {'name': 'a'}."),
    (
        "metrics: {tasks: [{kind: generate, name: a, path: b, promt: c, prompt: c, answer: d}]}",
        "unknown key metrics.tasks.0.promt; did you mean 'prompt'?",
    ),
    (
        "metrics: {tasks: [{kind: choice, name: a, path: b, prompt: c, answer: d}]}",
        "metrics.tasks.0.choices is missing",
    ),
    (
        "metrics: {tasks: [{kind: lm_eval, name: a, limit: 0}]}",
        "metrics.tasks.0.limit: input should be greater than",
    ),
    ("metrics: {tasks: [a b]}", "metrics.tasks.0.name: string should match pattern"),
    ("metrics: {tasks: [3]}", "metrics.tasks.0"),
    ("metrics: {tasks: hellaswag}", "metrics.tasks: input should be a list; found 'hellaswag'."),
    ("metrics: {tasks: [a, a]}", "metrics: two scores would be called 'a'; give one of them another `name`."),
    ("metrics: {tasks: [f], functions: ['m.py:f']}", "two scores would be called 'f'"),
    ("metrics: {functions: ['m.py:held_out_loss']}", "two scores would be called 'held_out_loss'"),
    (
        "metrics: {functions: [m.py]}",
        "metrics.functions: 'm.py' names no function; write path/to/file.py:function",
    ),
    (
        "metrics: {functions: [{path: 'm.py:f', better: up}]}",
        "input should be 'higher' or 'lower'; found 'up'.",
    ),
    (
        "metrics: {tasks: [{kind: generate, name: a, path: b, prompt: c, answer: d, extract: '('}]}",
        "metrics.tasks: a.extract: not a regular expression (",
    ),
    (
        "metrics: {tasks: [{kind: generate, name: a, path: b, prompt: c, answer: d, extract: (a)(b)}]}",
        "metrics.tasks: a.extract: one group at most, write (?:...) for the others; found '(a)(b)'.",
    ),
    (
        "metrics: {tasks: [{kind: choice, name: a, path: b, prompt: c, answer: d, choices: [e]}]}",
        "metrics.tasks: a.choices: a choice is between two at least; found ['e'].",
    ),
    (
        "metrics: {tasks: [{kind: choice, name: a, path: b, prompt: c, answer: d, choices: [true, false]}]}",
        "metrics.tasks.0.choices",
    ),
    (
        "metrics: {tasks: [{kind: choice, name: a, path: b, prompt: c, answer: d, choices: e, chat: true, "
        "delimiter: f}]}",
        "metrics.tasks: a.delimiter means nothing with `chat: true`; leave it out.",
    ),
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
    ("data: {train: a, packing: yes}", "data.packing.bool: input should be a valid boolean; found 'yes'."),
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
    (
        "train: {decay_shape: linear}",
        "train.decay_shape belongs to schedule: wsd; found schedule: linear.",
    ),
    (
        "train: {schedule: wsd, decay_shape: linear, lr_scheduler_kwargs: {decay_type: cosine}}",
        "train.decay_shape and lr_scheduler_kwargs.decay_type say the same; give one.",
    ),
    (
        "train: {schedule: wsd, decay: 0.3, lr_scheduler_kwargs: {num_decay_steps: 5}}",
        "train.decay and lr_scheduler_kwargs.num_decay_steps say the same; give one.",
    ),
    (
        "{train: {schedule: wsd}, anneal: {method: direct, count: 30, candidates: 20}}",
        "anneal.count is 30, and anneal.candidates scores only 20 samples; score more.",
    ),
    ("train: {schedule: wsd, decay_shape: steep}", "train.decay_shape: input should be 'linear', 'cosine'"),
    (
        "{train: {epochs: 2}, anneal: direct}",
        "anneal chooses what is trained on while the learning rate decays, and needs train.schedule: wsd; "
        "found linear.",
    ),
    (
        "{train: {schedule: wsd, early_stopping_patience: 2}, anneal: direct}",
        "train.early_stopping_patience could end the run before its annealing phase; leave one of them out.",
    ),
    (
        "{train: {schedule: wsd, decay: 0.3}, anneal: direct}",
        "anneal.last is 0.2 and train.decay 0.3; the annealing phase is the decay, so give one of them.",
    ),
    (
        "{train: {schedule: wsd}, anneal: {method: direct, count: 3, tokens: 9}}",
        "anneal: give one of fraction, count and tokens; found count and tokens.",
    ),
    (
        "{train: {schedule: wsd}, anneal: {method: full, count: 3}}",
        "anneal: full takes all of the data; leave fraction, count and tokens out.",
    ),
    (
        "{train: {schedule: wsd}, anneal: {method: direct, last: 1.5}}",
        "anneal.last: input should be less than 1",
    ),
    (
        "{train: {schedule: wsd}, anneal: {method: direct, tau: 0}}",
        "anneal.tau: input should be greater than 0",
    ),
    ("{train: {schedule: wsd}, anneal: {method: direct, count: 0}}", "anneal.count: input should be greater"),
    (
        "{train: {schedule: wsd}, anneal: {method: dirct}}",
        "anneal.method: unknown method 'dirct'; did you mean",
    ),
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
            (b"a: [1\n", "line 2: not valid YAML: "),
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
                lambda: Grass(embeddings="some"),  # type: ignore[arg-type]
                "Grass.embeddings: input should be 'never', 'always' or 'sampled'",
            ),
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
