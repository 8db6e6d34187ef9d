"""Multiple choice and generated answers against slow oracles, and against lm-eval's own tasks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradwise import RecipeError
from gradwise.evaluation import (
    Choice,
    EvaluationError,
    Generate,
    LmEval,
    Metrics,
    harness_tasks,
    prepare,
    score,
)
from gradwise.evaluation.harness import _requests, choice_score, harness, is_right
from gradwise.evaluation.questions import Question, questions

Make = Callable[[], Any]


def choice(path: str, **changes: Any) -> Choice:
    given: dict[str, Any] = {
        "name": "ends",
        "path": path,
        "prompt": "{{start}}",
        "choices": "ends",
        "answer": "label",
    }
    return Choice(**(given | changes))


def generate(path: str, **changes: Any) -> Generate:
    return Generate(
        **(
            {"name": "goes_on", "path": path, "prompt": "start", "answer": "{{ends}}", "max_new_tokens": 12}
            | changes
        )
    )


def loglikelihood(model: Any, tokenizer: Any, prompt: str, end: str) -> float:
    """Log-likelihood of `end` after `prompt`, one token at a time, in double precision."""
    ids = tokenizer(prompt + end)["input_ids"]
    total = 0.0
    for position in range(len(tokenizer(prompt)["input_ids"]), len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:position]])).logits[0, -1]
        total += float(logits.log_softmax(-1)[ids[position]])
    return total


def by_hand(model: Any, tokenizer: Any, path: str) -> list[dict[str, Any]]:
    """Every question with the model's own greedy answer of twelve tokens."""
    rows = []
    for question in questions(generate(path), tokenizer):
        ids = tokenizer(question.prompt, return_tensors="pt")["input_ids"]
        answer = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        rows.append({"start": question.prompt, "ends": tokenizer.decode(answer, skip_special_tokens=True)})
    return rows


class TestChoice:
    @pytest.mark.parametrize("normalise", [False, True])
    @pytest.mark.parametrize("delimiter", [None, ", "])
    def test_equals_a_loop_over_tokens(
        self,
        stories_questions: str,
        story_model: Make,
        tokenizer: Any,
        normalise: bool,
        delimiter: str | None,
    ):
        """The oracle says which choice is the likeliest; with that for an answer, all are right."""
        model = story_model().double().eval()
        likeliest = []
        for line in Path(stories_questions).read_text().splitlines():
            record = json.loads(line)
            between = " " if delimiter is None else delimiter
            logliks = [
                loglikelihood(model, tokenizer, record["start"], between + end)
                / (len(end) if normalise else 1)
                for end in record["ends"]
            ]
            likeliest.append(max(range(4), key=logliks.__getitem__))
        assert len(set(likeliest)) > 1
        task = choice(stories_questions, normalise=normalise, delimiter=delimiter)
        asked = questions(task, tokenizer)
        with harness(story_model(), tokenizer, batch_size=3, bars=False) as view:
            for number, right in enumerate(likeliest):
                found = Question(asked[number].prompt, asked[number].choices, right=right)
                assert choice_score(view, task, [found]).value == 1.0
                wrong = Question(asked[number].prompt, asked[number].choices, right=(right + 1) % 4)
                assert choice_score(view, task, [found, wrong]).value == 0.5

    def test_half_precision_is_summed_in_single(
        self, stories_questions: str, story_model: Make, tokenizer: Any
    ):
        asked = questions(choice(stories_questions), tokenizer)
        model = story_model().to(torch.bfloat16)
        with harness(model, tokenizer, batch_size=1, bars=False) as view:
            pairs = [(question.prompt, f" {question.choices[2]}") for question in asked]
            found = view.loglikelihood(_requests("loglikelihood", pairs))
        for (prompt, end), (loglik, _) in zip(pairs, found, strict=True):
            ids = torch.tensor(tokenizer(prompt + end)["input_ids"])
            start = len(tokenizer(prompt)["input_ids"])
            with torch.no_grad():
                logits = model(ids[None, :-1]).logits[0, start - 1 :].double()
            expected = logits.log_softmax(-1).gather(1, ids[start:, None]).sum()
            assert loglik == pytest.approx(float(expected), rel=1e-5)

    def test_length_matters_where_it_is_divided_by(
        self, stories_questions: str, story_model: Make, tokenizer: Any
    ):
        with harness(story_model(), tokenizer, batch_size=3, bars=False) as view:
            plain, normalised = (
                [
                    choice_score(view, task, [Question(q.prompt, q.choices, n)]).value
                    for q in questions(task, tokenizer)
                    for n in range(4)
                ]
                for task in (choice(stories_questions), choice(stories_questions, normalise=True))
            )
        assert plain != normalised

    @pytest.mark.parametrize("answer", ["label", "number", "{{ends[number]}}", "{{number}}"])
    def test_answers_by_letter_number_and_text_mean_the_same(
        self, stories_questions: str, tokenizer: Any, answer: str
    ):
        asked = questions(choice(stories_questions, answer=answer), tokenizer)
        assert [question.right for question in asked] == [0, 1, 2, 3, 0, 1]

    def test_choices_as_templates(self, stories_questions: str, tokenizer: Any):
        task = choice(stories_questions, choices=["{{ends[1]}}", "no", "maybe"], answer="no", limit=2)
        assert [question.choices for question in questions(task, tokenizer)] == [("bed", "no", "maybe")] * 2


class TestGenerate:
    def test_equals_greedy_generation_by_hand(
        self, stories_questions: str, story_model: Make, tokenizer: Any, records: Any
    ):
        rows = by_hand(story_model(), tokenizer, stories_questions)
        assert len({row["ends"] for row in rows}) == len(rows)
        rows[0]["ends"] += " not"
        task = generate(records(*rows), answer="ends")
        scores = score(story_model(), tokenizer, Metrics(tasks=[task], batch_size=4))
        assert scores["goes_on"].value == pytest.approx(5 / 6)
        assert scores["goes_on"].samples == 6

    def test_ends_at_a_stop_text(
        self, stories_questions: str, story_model: Make, tokenizer: Any, records: Any
    ):
        rows = by_hand(story_model(), tokenizer, stories_questions)
        for row in rows:
            row["stop"] = row["ends"][5:8]
            row["ends"] = row["ends"].split(row["stop"])[0]
        for number, row in enumerate(rows):
            path = records(row, name=f"{number}.jsonl")
            for stop, right in (([row["stop"]], 1), ([], 0)):
                task = generate(path, answer="ends", stop=stop)
                assert score(story_model(), tokenizer, Metrics(tasks=[task]))["goes_on"].value == right

    def test_what_the_model_brings_along_has_no_part(
        self, stories_questions: str, story_model: Make, tokenizer: Any, records: Any
    ):
        """Penalties, sampling and lengths in its generation settings would make models incomparable."""
        path = records(*by_hand(story_model(), tokenizer, stories_questions))
        model = story_model()
        model.generation_config.update(repetition_penalty=5.0, do_sample=True, max_new_tokens=1)
        scores = score(model, tokenizer, Metrics(tasks=[generate(path, answer="ends")]))
        assert scores["goes_on"].value == 1
        assert model.generation_config.repetition_penalty == 5.0

    @pytest.mark.parametrize(
        ("settings", "text", "answers", "right"),
        [
            ({}, " 12 \n", ("12",), True),
            ({}, "it is 12", ("12",), False),
            ({"extract": "[0-9]+"}, "3 and 9 are 12.", ("12",), True),
            ({"extract": "[0-9]+", "take": "first"}, "3 and 9 are 12.", ("12",), False),
            ({"extract": "#### ([0-9]+)"}, "3 and 9\n#### 12", ("12",), True),
            ({"extract": "#### ([0-9]+)"}, "3 and 9 are 12", ("12",), False),
            ({"extract": "[0-9,]+"}, "1,200", ("1200",), False),
            ({"extract": "[0-9,]+", "ignore": "[,$]"}, "$1,200", ("$1200",), True),
            ({"extract": "(x)?y"}, "y", ("x",), False),
            ({}, "b", ("a", "b"), True),
            ({"ignore": "(?i)[^a-z]"}, "Yes.", ("Yes",), True),
        ],
    )
    def test_right_answers(self, settings: dict[str, Any], text: str, answers: tuple[str, ...], right: bool):
        assert is_right(generate("x", **settings), text, Question("", answers=answers)) == right


class TestLmEval:
    """A task file of one's own, in lm-eval's format, over the same records."""

    @pytest.fixture
    def folder(self, tmp_path: Path, stories_questions: str, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        folder = tmp_path / "tasks"
        folder.mkdir()
        (folder / "ends.yaml").write_text(
            f"""
task: ends
dataset_path: json
dataset_kwargs: {{data_files: {{test: {stories_questions}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: ends
doc_to_target: number
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
  - {{metric: brier_score, aggregation: brier_score, higher_is_better: false}}
"""
        )
        return folder

    def test_scores_as_the_same_task_on_the_file_does(
        self, folder: Path, stories_questions: str, story_model: Make, tokenizer: Any
    ):
        theirs = [LmEval(name="ends", folder=str(folder), metric=name) for name in (None, "acc_norm")]
        ours = [choice(stories_questions, normalise=normalise) for normalise in (False, True)]
        for one, other in zip(theirs, ours, strict=True):
            left, right = (score(story_model(), tokenizer, Metrics(tasks=[task])) for task in (one, other))
            assert left == right
            assert left["ends"].samples == 6

    def test_limit_and_direction(self, folder: Path, story_model: Make, tokenizer: Any):
        task = LmEval(name="ends", folder=str(folder), metric="brier_score,none", limit=3)
        found = score(story_model(), tokenizer, Metrics(tasks=[task]))["ends"]
        assert (found.better, found.samples) == ("lower", 3)

    def test_unknown_names(self, folder: Path, tokenizer: Any):
        with pytest.raises(
            RecipeError, match=r"metrics\.tasks: end: .* has no task of that name; did you mean"
        ):
            prepare(Metrics(tasks=[LmEval(name="end", folder=str(folder))]), tokenizer)
        task = LmEval(name="ends", folder=str(folder), metric="f1")
        with pytest.raises(
            RecipeError, match=r"ends\.metric: it has no metric 'f1'; known: acc, acc_norm, bri"
        ):
            prepare(Metrics(tasks=[task]), tokenizer)
        with pytest.raises(
            EvaluationError, match="reports no metric 'f1'; it reports acc,none, acc_norm,none"
        ):
            harness_tasks._picked(
                task, {"results": {"ends": {"acc,none": 0.5, "acc_norm,none": 0.5, "alias": "ends"}}}
            )

    @pytest.mark.parametrize("aggregated", [True, False])
    def test_groups(self, folder: Path, story_model: Make, tokenizer: Any, aggregated: bool):
        other = (folder / "ends.yaml").read_text().replace("task: ends", "task: more")
        (folder / "more.yaml").write_text(other.replace("{{start}}", "Once. {{start}}"))
        end = "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n" if aggregated else ""
        (folder / "both.yaml").write_text("group: both\ntask: [ends, more]\n" + end)
        task = LmEval(name="both", folder=str(folder), limit=4)
        if not aggregated:
            with pytest.raises(
                RecipeError, match=r"both is a collection without a score .* tasks: ends, more\."
            ):
                prepare(Metrics(tasks=[task]), tokenizer)
            return
        parts = [LmEval(name=name, folder=str(folder), limit=4) for name in ("ends", "more")]
        one, two, both = score(story_model(), tokenizer, Metrics(tasks=[*parts, task])).values()
        assert both.value == pytest.approx((one.value + two.value) / 2)
        assert both.samples == 8

    def test_code_of_the_models_is_not_run(self, folder: Path, tokenizer: Any):
        (folder / "ends.yaml").write_text((folder / "ends.yaml").read_text() + "unsafe_code: true\n")
        with pytest.raises(RecipeError, match="ends runs code that the model writes"):
            prepare(Metrics(tasks=[LmEval(name="ends", folder=str(folder))]), tokenizer)

    def test_data_that_cannot_be_had(self, folder: Path, tokenizer: Any):
        text = (folder / "ends.yaml").read_text().replace("questions.jsonl", "gone.jsonl")
        (folder / "ends.yaml").write_text(text)
        with pytest.raises(RecipeError, match=r"lm-eval could not load it, or fetch its data \("):
            prepare(Metrics(tasks=[LmEval(name="ends", folder=str(folder))]), tokenizer)
