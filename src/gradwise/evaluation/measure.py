"""Checks metrics before a run begins, and takes them on its final model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
import transformers

from gradwise.console import on_terminal, say
from gradwise.errors import GradwiseError, RecipeError
from gradwise.evaluation import functions, harness, harness_tasks
from gradwise.evaluation.held_out import held_out_loss
from gradwise.evaluation.questions import Question, questions
from gradwise.evaluation.scores import EvaluationError, Score
from gradwise.evaluation.settings import Generate, LmEval, Metrics, Task
from gradwise.evaluation.state import is_sharded, restored_state
from gradwise.text import described

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """Metrics whose every part is known to be there: questions rendered, functions found."""

    metrics: Metrics
    questions: dict[str, list[Question]] = field(default_factory=dict)
    """The questions of each task on a file."""
    loaded: dict[str, dict[str, Any]] = field(default_factory=dict)
    """lm-eval's tasks, loaded."""
    found: list[Callable[..., Any]] = field(default_factory=list)
    """The user's functions, in their order."""

    def check_length(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", tell: Tell
    ) -> None:
        """Refuse answers that the model has no positions for; name questions that will lose their start.

        Raises:
            RecipeError: a task generates more tokens than fit.
        """
        positions = getattr(model.config, "max_position_embeddings", None)
        for task in self.metrics.tasks:
            if isinstance(task, LmEval) or not isinstance(positions, int):
                continue
            if isinstance(task, Generate) and task.max_new_tokens >= positions:
                raise RecipeError(
                    f"metrics.tasks: {task.name}.max_new_tokens is {task.max_new_tokens}, but the model has "
                    f"only {positions} positions, the prompt's among them; give fewer."
                )
            task_questions = self.questions[task.name]
            long = int((harness.longest(tokenizer, task, task_questions) > positions).sum())
            if long:
                tell(
                    f"Warning: {long} of {len(task_questions)} questions of {task.name} are longer, with "
                    f"their answer, than the model's {positions} positions; they will lose their beginning."
                )


def prepare(metrics: Metrics, tokenizer: "PreTrainedTokenizerBase", *, seed: int = 0) -> Prepared:
    """Find and check everything that metrics need but the model itself.

    Args:
        metrics: the recipe's `metrics`.
        tokenizer: the model's; it is left as it was.
        seed: decides the worked examples in the prompts of lm-eval's tasks.

    Raises:
        RecipeError: lm-eval is missing, a task is unknown, a function cannot be imported or called.
        DataError: records are missing, or do not make questions.
    """
    user_functions = [functions.import_function(function) for function in metrics.functions]
    if metrics.tasks:
        harness.check_installed(tokenizer)
    files = [task for task in metrics.tasks if not isinstance(task, LmEval)]
    lm_eval_tasks = [task for task in metrics.tasks if isinstance(task, LmEval)]
    return Prepared(
        metrics,
        questions={task.name: questions(task, tokenizer) for task in files},
        loaded={task.name: harness_tasks.load_harness_task(task, seed) for task in lm_eval_tasks},
        found=user_functions,
    )


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    metrics: Metrics | Prepared,
    validation: Any = None,
    *,
    batch_tokens: int = 4096,
    seed: int = 0,
    progress: bool = True,
    tell: Tell = say,
) -> dict[str, Score]:
    """Measure a model: held-out loss, the user's functions, then tasks.

    Functions come before tasks, because they are the likeliest to fail and tasks the longest to run. Under
    torch.distributed all ranks must call it. They share the held-out loss; functions and tasks are the first
    rank's alone, and the others return without waiting for it, since a barrier would time out under a task
    that takes hours. So a function must not communicate.

    Args:
        model: a causal language model, whole on each rank. Its modes, generation settings and random states
            are given back as they were, and so is the tokenizer.
        tokenizer: the model's.
        metrics: what to measure, or what `prepare` made of it.
        validation: data set of held-out samples (`input_ids`, `labels`, perhaps `domain`), or None.
        batch_tokens: padded tokens in one batch of the held-out loss.
        seed: what every metric's random numbers begin with.
        progress: show how far it is.
        tell: gets warnings.

    Returns:
        Scores by name: `held_out_loss`, `held_out_loss/<domain>` where there are several, the names of tasks
        and functions, `<function>/<key>` where a function gives a mapping. Only the held-out loss on ranks
        other than the first.

    Raises:
        RecipeError, DataError: as `prepare` does, and for a model that is sharded over ranks.
        EvaluationError: a function or a task failed, or gave a number that is not finite.

    >>> score(model, tokenizer, Metrics(), validation)  # doctest: +SKIP
    {'held_out_loss': Score(value=1.93, better='lower', samples=500)}
    """
    if is_sharded(model):
        raise RecipeError(
            "The model is sharded over several processes, where it cannot be scored; score the saved model "
            "in one process."
        )
    prepared = metrics if isinstance(metrics, Prepared) else prepare(metrics, tokenizer, seed=seed)
    scores: dict[str, Score] = {}
    with restored_state(model, tokenizer):
        if validation is not None:
            scores |= held_out_loss(
                model, tokenizer, validation, batch_tokens=batch_tokens, progress=progress, tell=tell
            )
        if dist.is_initialized() and dist.get_rank() > 0:
            return scores
        for setting, function in zip(prepared.metrics.functions, prepared.found, strict=True):
            with restored_state(model, tokenizer):
                transformers.set_seed(seed)
                model.eval()
                scores |= functions.call(setting, function, model, tokenizer, validation)
        scores |= _tasks(model, tokenizer, prepared, seed, progress and on_terminal())
    return scores


def _tasks(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prepared: Prepared, seed: int, bars: bool
) -> dict[str, Score]:
    metrics = prepared.metrics
    lm_eval_view = harness.harness(model, tokenizer, batch_size=metrics.batch_size, bars=bars)
    scores: dict[str, Score] = {}
    if not metrics.tasks:
        return scores
    with lm_eval_view as view:
        for task in metrics.tasks:
            # Each begins with the same random numbers, so that leaving one out changes no score of another.
            transformers.set_seed(seed)
            scores[task.name] = _task(view, task, prepared, bars)
    return scores


def _task(view: object, task: Task, prepared: Prepared, bars: bool) -> Score:
    try:
        if isinstance(task, LmEval):
            return harness_tasks.score_harness_task(view, task, prepared.loaded[task.name], bars=bars)
        ask = harness.generate_score if isinstance(task, Generate) else harness.choice_score
        return ask(view, task, prepared.questions[task.name])  # type: ignore[arg-type]
    except GradwiseError:
        raise
    except Exception as error:
        raise EvaluationError(f"The task {task.name} failed ({described(error)}).") from error
