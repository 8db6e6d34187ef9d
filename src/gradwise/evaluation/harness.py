"""lm-eval around a model that is loaded already: log-likelihoods and greedy answers to questions on files.

Questions on files are asked through lm-eval's model but not through its ConfigurableTask, which re-evaluates
rendered text as Python literals, shows bars that cannot be turned off, and reads local files through a cache
below HOME. The engine is the part worth having: where a prompt's tokens end and a choice's begin, batches by
length, stop texts, room in the window.
"""

import copy
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gradwise.errors import RecipeError
from gradwise.evaluation.questions import Question, bare
from gradwise.evaluation.scores import EvaluationError, Score
from gradwise.evaluation.settings import Choice, Generate


def check_installed(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise RecipeError where tasks cannot be run at all."""
    if find_spec("lm_eval") is None:
        raise RecipeError("metrics.tasks needs the package lm-eval; run: pip install 'gradwise[eval]'.")
    try:
        import lm_eval.models.huggingface  # noqa: F401  # that it is there does not mean that it works
    except Exception as error:
        raise RecipeError(
            f"metrics.tasks needs lm-eval, which cannot be imported ({type(error).__name__}: {error}); run: "
            "pip install --upgrade 'gradwise[eval]'."
        ) from None
    if tokenizer.eos_token_id is None:
        raise RecipeError("metrics.tasks needs a tokenizer with an end-of-text token; this one has none.")


@contextmanager
def harness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, bars: bool
) -> Iterator[Any]:
    """lm-eval's view of a model. It turns the model to evaluation mode and bare greedy decoding: use it
    within `restored_state`."""
    from lm_eval.models import huggingface

    _decode_greedily(model)
    with quiet():
        # A tokenizer of its own: lm-eval chooses a padding token and switches sides.
        options: dict[str, Any] = {"tokenizer": copy.deepcopy(tokenizer), "batch_size": batch_size}
        # bfloat16 has three digits, too few to tell likelihoods apart that are summed over many tokens.
        options["softmax_dtype"] = torch.float32
        # `Any`: its decorator hides the constructor's signature.
        view: Any = cast(Any, huggingface.HFLM)(model, backend="causal", **options)
        for ask in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(view, ask, partial(getattr(view, ask), disable_tqdm=not bars))
        yield view


def _decode_greedily(model: PreTrainedModel) -> None:
    """Without the penalties, temperatures and lengths that a model may bring, so that models compare."""
    for module in model.modules():
        if (settings := vars(module).get("generation_config")) is not None:
            tokens = {name: getattr(settings, f"{name}_token_id") for name in ("bos", "eos", "pad")}
            module.generation_config = GenerationConfig(  # type: ignore[assignment]
                **{f"{name}_token_id": token for name, token in tokens.items()}
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Let lm-eval speak up on errors only."""
    log = logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=number, metadata=("", number, 1))  # type: ignore[arg-type]
        for number, each in enumerate(arguments)
    ]


def choice_score(view: Any, task: Choice, questions: list[Question]) -> Score:
    """The share of questions where the right choice has the largest log-likelihood, the first on a tie."""
    delimiter = "" if task.chat else " " if task.delimiter is None else task.delimiter
    pairs = [(question.prompt, delimiter + choice) for question in questions for choice in question.choices]
    log_likelihoods = iter(view.loglikelihood(_requests("loglikelihood", pairs)))
    right = 0
    for question in questions:
        logliks = np.array([next(log_likelihoods)[0] for _ in question.choices])
        if not np.isfinite(logliks).all():
            raise EvaluationError(f"The task {task.name} meets log-likelihoods that are not finite.")
        # By characters, as `acc_norm` of lm-eval 0.4.13: models with different tokenizers stay comparable.
        if task.normalise:
            logliks /= [len(choice) for choice in question.choices]
        right += int(np.argmax(logliks)) == question.right
    return Score(right / len(questions), "higher", len(questions))


def generate_score(view: Any, task: Generate, questions: list[Question]) -> Score:
    """The share of questions whose generated answer is one of the right ones."""
    settings = {"until": list(task.stop), "max_gen_toks": task.max_new_tokens, "do_sample": False}
    answers = view.generate_until(
        _requests("generate_until", [(question.prompt, dict(settings)) for question in questions])
    )
    right = sum(is_right(task, text, question) for text, question in zip(answers, questions, strict=True))
    return Score(right / len(questions), "higher", len(questions))


def is_right(task: Generate, text: str, question: Question) -> bool:
    """Whether the answer in a generated text is one of the right ones."""
    if task.extract is not None:
        matches = list(re.finditer(task.extract, text))
        if not matches:
            return False
        match = matches[0 if task.take == "first" else -1]
        text = (match[1] if match.re.groups else match[0]) or ""
    return bare(task, text) in {bare(task, answer) for answer in question.answers}


def longest(
    tokenizer: PreTrainedTokenizerBase, task: Generate | Choice, questions: list[Question]
) -> np.ndarray:
    """(N,) tokens that each question may come to with its answer."""
    rest = task.max_new_tokens if isinstance(task, Generate) else 0
    texts = [question.prompt + max(question.choices, key=len, default="") for question in questions]
    return np.array([len(ids) for ids in tokenizer(texts)["input_ids"]]) + rest
