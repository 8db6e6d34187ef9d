"""`prepare` refuses what could not be measured later; `score` measures all and gives the model back."""

import copy
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from gradwise import DataError, RecipeError
from gradwise.evaluation import Choice, EvaluationError, Function, Generate, LmEval, Metrics, prepare, score
from gradwise.evaluation.harness import harness
from gradwise.evaluation.state import restored_state

Make = Callable[[], Any]
TURNS = "{% for m in messages %}<{{m.role}}>{{m.content}}{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}<me>{% endif %}"

MEDDLES = """
import random, numpy, torch
from transformers import GenerationConfig
def meddles(model, tokenizer, validation):
    assert not model.training
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.generation_config = GenerationConfig(max_new_tokens=3)
    tokenizer.padding_side = "left"
    drawn = random.random() + numpy.random.rand() + float(torch.rand(1))
    return drawn
def again(model, tokenizer, validation):
    assert tokenizer.padding_side == "right" and not model.training
    return meddles(model, tokenizer, validation)
def fails(model, tokenizer, validation):
    meddles(model, tokenizer, validation)
    raise ValueError("no")
"""


@pytest.fixture
def functions(tmp_path: Path) -> Callable[..., list[Function]]:
    (tmp_path / "meddling.py").write_text(MEDDLES)
    return lambda *names: [Function(path=f"{tmp_path}/meddling.py:{name}") for name in names]


@pytest.fixture
def tasks(stories_questions: str) -> list[Any]:
    return [
        Choice(name="ends", path=stories_questions, prompt="start", choices="ends", answer="label"),
        Generate(name="on", path=stories_questions, prompt="start", answer="{{ends}}", max_new_tokens=3),
    ]


def state(model: Any, tokenizer: Any) -> Any:
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        model.generation_config.to_dict(),
        (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token, tokenizer.chat_template),
        (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),  # type: ignore[index]
        [parameter.sum().item() for parameter in model.parameters()],
    )


class TestScore:
    @pytest.mark.parametrize("fails", [False, True])
    def test_everything_is_given_back(
        self, story_model: Make, tokenizer: Any, speeches: Dataset, functions: Any, tasks: Any, fails: bool
    ):
        model = story_model().train()
        model.model.layers[1].eval()
        model.lm_head.weight.requires_grad_(False)
        model.generation_config.top_k = 7
        before = state(model, tokenizer)
        metrics = Metrics(tasks=tasks, functions=functions("meddles", "fails" if fails else "again"))
        if fails:
            with pytest.raises(EvaluationError, match="The metric fails failed"):
                score(model, tokenizer, metrics, speeches)
        else:
            score(model, tokenizer, metrics, speeches)
        assert state(model, tokenizer) == before

    def test_names_in_their_order_and_seeds(
        self, story_model: Make, tokenizer: Any, speeches: Dataset, functions: Any, tasks: Any
    ):
        metrics = Metrics(tasks=tasks, functions=functions("meddles", "again"))
        first, second, other = (
            score(story_model(), tokenizer, metrics, speeches, seed=seed) for seed in (3, 3, 4)
        )
        losses = [f"held_out_loss{part}" for part in ("", "/d0", "/d1", "/d2")]
        assert list(first) == [*losses, "meddles", "again", "ends", "on"]
        assert first == second
        assert first["meddles"].value == first["again"].value != other["meddles"].value
        assert first["meddles"].samples == len(speeches)

    def test_lm_eval_sees_a_tokenizer_of_its_own(self, story_model: Make, tokenizer: Any):
        """It chooses a padding token, or adds one to the vocabulary where it finds none to choose."""
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = None
        with harness(story_model(), tokenizer, batch_size=1, bars=False) as view:
            assert view.tokenizer.pad_token is not None
            assert tokenizer.pad_token is None

    def test_nothing_to_measure(self, story_model: Make, tokenizer: Any):
        assert score(story_model(), tokenizer, Metrics()) == {}

    def test_a_task_that_fails_says_which(self, story_model: Make, tokenizer: Any, tasks: Any):
        model = story_model()
        model.model.forward = lambda *_, **__: 1 / 0
        with pytest.raises(EvaluationError, match=r"^The task ends failed \(ZeroDivisionError: division by"):
            score(model, tokenizer, Metrics(tasks=tasks))

    def test_loglikelihoods_that_are_not_numbers(self, story_model: Make, tokenizer: Any, tasks: Any):
        model = story_model()
        with torch.no_grad():
            model.model.norm.weight.fill_(torch.nan)
        with pytest.raises(EvaluationError, match="The task ends meets log-likelihoods that are not finite"):
            score(model, tokenizer, Metrics(tasks=tasks[:1]))

    def test_sharded_models_are_refused(self, story_model: Make, tokenizer: Any):
        model = story_model()
        next(model.parameters()).ds_id = 0
        with pytest.raises(RecipeError, match="sharded over several processes, where it cannot be scored"):
            score(model, tokenizer, Metrics())

    def test_an_adapter_is_scored_with_what_it_learned(
        self, story_model: Make, tokenizer: Any, tasks: Any, speeches: Dataset
    ):
        from peft import LoraConfig, get_peft_model

        model: Any = get_peft_model(
            story_model(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.3)
        before = model.generation_config, model.base_model.model.generation_config
        scores = score(model, tokenizer, Metrics(tasks=tasks), speeches)
        assert (
            model.generation_config.to_dict(),
            model.base_model.model.generation_config.to_dict(),
        ) == tuple(config.to_dict() for config in before)
        merged = score(model.merge_and_unload(), tokenizer, Metrics(tasks=tasks), speeches)
        assert {name: found.value for name, found in scores.items()} == pytest.approx(
            {name: found.value for name, found in merged.items()}, rel=1e-4
        )


class TestChat:
    def test_the_prompt_is_a_users_turn(self, tokenizer: Any, tasks: Any, stories_questions: str):
        task = Choice(
            name="ends",
            path=stories_questions,
            prompt="start",
            choices="ends",
            answer="label",
            chat=True,
            limit=1,
        )
        with restored_state(torch.nn.Linear(1, 1), tokenizer):
            tokenizer.chat_template = TEMPLATE
            asked = prepare(Metrics(tasks=[task]), tokenizer).questions["ends"]
        assert asked[0].prompt == "<user>Once upon a time, there was a little<me>"
        assert tokenizer.chat_template is None

    def test_without_a_template(self, tokenizer: Any, stories_questions: str):
        task = Generate(name="on", path=stories_questions, prompt="start", answer="label", chat=True)
        with pytest.raises(
            DataError, match=r"metrics\.tasks: on: .*line 1: the tokenizer has no chat template"
        ):
            prepare(Metrics(tasks=[task]), tokenizer)


class TestPrepare:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"path": "gone.jsonl"}, "metrics.tasks: t: no file or folder gone.jsonl (looked for "),
            ({"prompt": "{{strt}}"}, "t: questions.jsonl, line 1: prompt: 'strt' is undefined; "),
            ({"prompt": "{{b"}, "metrics.tasks: t.prompt: not valid Jinja, line 1"),
            (
                {"answer": "{{lable}}"},
                "line 1: answer: 'lable' is undefined; the record's columns: ends, label, number",
            ),
            (
                {"answer": "E"},
                "line 1: the answer 'E' is none of the 4 choices, nor a number from 0 to 3, nor a",
            ),
            ({"answer": "7"}, "the answer '7' is none of the 4 choices"),
            ({"choices": "label"}, "`choices` must give a list; found str."),
            ({"choices": "{{ends[:1]}}"}, "a choice is between two texts at least; found 1"),
            ({"choices": ["a", "{{''}}"]}, "found 2, or an empty one"),
            ({"prompt": "{{''}}"}, "the prompt is empty"),
            (
                {"prompt": "strat"},
                "line 1: prompt: 'strat' is not a column, nor a template with {{...}} in it; the record's "
                "columns: ends, label",
            ),
        ],
        ids=str,
    )
    def test_mistakes_in_choices(
        self, stories_questions: str, tokenizer: Any, changes: dict[str, Any], message: str
    ):
        given: dict[str, Any] = {
            "name": "t",
            "path": stories_questions,
            "prompt": "start",
            "choices": "ends",
            "answer": "label",
        }
        with pytest.raises((RecipeError, DataError), match=re.escape(message)) as caught:
            prepare(Metrics(tasks=[Choice(**(given | changes))]), tokenizer)
        assert str(caught.value).startswith("metrics.tasks: t")
        assert str(caught.value).endswith(".") and not str(caught.value).endswith("..")

    def test_a_record_at_fault_is_named(self, records: Any, tokenizer: Any):
        path = records({"q": "1?", "a": "1"}, {"q": "2?", "a": "2"}, {"q": "3?"}, {"q": "4?", "a": ""})
        task: dict[str, Any] = {"name": "t", "path": path, "prompt": "q", "answer": "{{a}}"}
        with pytest.raises(DataError, match=r"questions\.jsonl, line 3: .*answer: 'a' is undefined"):
            prepare(Metrics(tasks=[Generate(**task)]), tokenizer)
        prepare(Metrics(tasks=[Generate(**task, limit=2)]), tokenizer)
        Path(path).write_text('{"q": "1?", "a": " "}\n')
        with pytest.raises(DataError, match=r"line 1: the answer is empty\.$"):
            prepare(Metrics(tasks=[Generate(**task)]), tokenizer)
        with pytest.raises(DataError, match=r"line 1: answer: 'b' is not a column, nor a template"):
            prepare(Metrics(tasks=[Generate(**{**task, "answer": "b"})]), tokenizer)
        Path(path).write_text("{\n")
        with pytest.raises(DataError, match=r"line 1: not JSON"):
            prepare(Metrics(tasks=[Generate(**task)]), tokenizer)
        Path(path).write_text("\n")
        with pytest.raises(DataError, match=r"holds no records\.$"):
            prepare(Metrics(tasks=[Generate(**task)]), tokenizer)

    def test_without_lm_eval(self, tasks: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("gradwise.evaluation.harness.find_spec", lambda _: None)
        with pytest.raises(
            RecipeError, match=r"needs the package lm-eval; run: pip install 'gradwise\[eval\]'"
        ):
            prepare(Metrics(tasks=tasks), tokenizer)
        prepare(Metrics(), tokenizer)

    def test_a_broken_lm_eval(self, tasks: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
        with pytest.raises(RecipeError, match=r"lm-eval, which cannot be imported \(ModuleNotFoundError: "):
            prepare(Metrics(tasks=tasks), tokenizer)

    def test_positions(self, tasks: Any, story_model: Make, tokenizer: Any, stories_questions: str):
        messages: list[str] = []
        model = story_model()
        prepare(Metrics(tasks=tasks), tokenizer).check_length(model, tokenizer, messages.append)
        assert messages == []
        wordy = Generate(name="w", path=stories_questions, prompt="start", answer="label", max_new_tokens=500)
        prepare(Metrics(tasks=[wordy]), tokenizer).check_length(model, tokenizer, messages.append)
        assert messages == [
            "Warning: 1 of 6 questions of w are longer, with their answer, than the model's 512 positions; "
            "they will lose their beginning."
        ]
        endless = Generate(
            name="w", path=stories_questions, prompt="start", answer="label", max_new_tokens=512
        )
        with pytest.raises(
            RecipeError, match=r"w\.max_new_tokens is 512, but the model has only 512 positions"
        ):
            prepare(Metrics(tasks=[endless]), tokenizer).check_length(model, tokenizer, messages.append)

    @pytest.mark.slow
    @pytest.mark.exhaustive
    def test_a_task_that_lm_eval_does_not_know(self, tokenizer: Any):
        with pytest.raises(
            RecipeError, match=r"hellaswagg: lm-eval has no task of that name; did you mean 'hellaswag'"
        ):
            prepare(Metrics(tasks=[LmEval(name="hellaswagg")]), tokenizer)


def test_settings_import_nothing_heavy_of_ours():
    """A recipe names metrics without loading what measures them."""
    code = "import sys, gradwise.recipe; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "gradwise.evaluation.settings" in loaded
    assert not {"lm_eval", "gradwise.evaluation.measure"} & set(loaded)
