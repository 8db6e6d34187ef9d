"""Tasks that lm-eval knows by name: found and loaded before training, run after it."""

from functools import partial
from typing import Any

from gradwise.errors import RecipeError
from gradwise.evaluation.harness import quiet
from gradwise.evaluation.scores import EvaluationError, Score, finite
from gradwise.evaluation.settings import LmEval
from gradwise.settings import nearest
from gradwise.text import described


def load_harness_task(task: LmEval, seed: int = 0) -> dict[str, Any]:
    """Load a task that lm-eval knows, with its data.

    Raises:
        RecipeError: there is none of that name, it cannot be loaded, or it runs code or needs images.
    """
    from lm_eval.tasks import TaskManager

    key = f"metrics.tasks: {task.name}"
    with quiet():
        # Its own index is 14,000 files, 8 s to read.
        manager = TaskManager(include_path=task.folder, include_defaults=task.folder is None)
        if task.name not in manager.all_tasks:
            raise RecipeError(
                f"{key}: {task.folder or 'lm-eval'} has no task of that name{_near(task, manager)}"
            )
        try:
            loaded: Any = manager.load([task.name])
        except Exception as error:
            reason = described(error)
            raise RecipeError(f"{key}: lm-eval could not load it, or fetch its data ({reason}).") from None
    _check(task, loaded, key)
    for inner in loaded["tasks"].values():
        shots = inner.get_config("num_fewshot") if task.shots is None else task.shots
        inner.set_config(key="num_fewshot", value=shots or 0)
        inner.set_fewshot_seed(seed=seed)
    return loaded


def _check(task: LmEval, loaded: dict[str, Any], key: str) -> None:
    """Raise RecipeError for what would only show after training."""
    group, inner = loaded["groups"].get(task.name), loaded["tasks"]
    if task.name not in inner and not getattr(group, "aggregate_metric_list", None):
        raise RecipeError(
            f"{key} is a collection without a score of its own; name its tasks: "
            f"{', '.join(list(inner)[:8])}{', ...' if len(inner) > 8 else ''}."
        )
    if any(getattr(one, "UNSAFE_CODE", False) for one in inner.values()):
        raise RecipeError(f"{key} runs code that the model writes, which gradwise does not do.")
    if any(getattr(one, "MULTIMODAL", False) for one in inner.values()):
        raise RecipeError(f"{key} shows images or sound, which a language model does not see.")
    # Some tasks name their metrics only once they have scored: `_picked` looks again.
    metric_names = sorted({name for one in inner.values() for name in one.aggregation()})
    if task.metric is not None and metric_names and task.metric.partition(",")[0] not in metric_names:
        raise RecipeError(
            f"{key}.metric: it has no metric {task.metric!r}{nearest(task.metric, metric_names)}"
        )


def _near(task: LmEval, manager: Any) -> str:
    suggestion = nearest(task.name, list(manager.all_tasks))
    if task.folder is not None or "did you mean" in suggestion:
        return suggestion
    return "; see `lm-eval ls tasks`, or give a path with kind: generate or kind: choice."


def score_harness_task(view: Any, task: LmEval, loaded: dict[str, Any], *, bars: bool) -> Score:
    """Run a loaded task or group and pick its score."""
    from lm_eval import evaluator
    from lm_eval.api import task as tasks

    bar = tasks.tqdm
    tasks.tqdm = partial(bar, disable=not bars)  # it asks nobody whether bars are wanted
    try:
        with quiet():
            results: Any = evaluator.evaluate(
                lm=view,
                task_dict=loaded,  # type: ignore[arg-type]
                limit=task.limit,
                # lm-eval 0.4.13 resamples 100,000 times by default, for standard errors that no score shows.
                bootstrap_iters=0,
                log_samples=False,
                apply_chat_template=task.chat,
            )
    finally:
        tasks.tqdm = bar
    return _picked(task, results)


def _picked(task: LmEval, results: dict[str, Any]) -> Score:
    values = results["results"][task.name]
    metrics = [key for key, value in values.items() if "," in key and isinstance(value, int | float)]
    metrics = [key for key in metrics if "_stderr," not in key]
    wanted = [key for key in metrics if task.metric in (None, key, key.partition(",")[0])]
    if not wanted:
        names = ", ".join(metrics) or "none"
        raise EvaluationError(f"The task {task.name} reports no metric {task.metric!r}; it reports {names}.")
    better = results["higher_is_better"].get(task.name, {}).get(wanted[0].partition(",")[0], True)
    counts = results["n-samples"]
    inner = [name for name in counts if name == task.name] or list(counts)
    samples = sum(counts[name]["effective"] for name in inner)
    return Score(finite(task.name, values[wanted[0]]), "lower" if better is False else "higher", samples)
