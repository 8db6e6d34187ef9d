"""One run from recipe to trained model: load, decide, train, save, score; resumed wherever it stopped."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import transformers

from gradwise.atomic import size_text
from gradwise.console import on_terminal, say
from gradwise.data import Collator
from gradwise.data.chat import with_template
from gradwise.data.parts import load_parts
from gradwise.errors import RecipeError
from gradwise.ranks import check_same, is_first, on_each, on_first, world_size
from gradwise.recipe import Data, Model, Recipe
from gradwise.run.directory import RunDirectory
from gradwise.run.environment import environment, peak_memory
from gradwise.run.model import Tell, check_length, load_model, load_tokenizer, measures, pinned
from gradwise.run.progress import quiet_libraries, show_progress
from gradwise.run.scoring import Scoring, due, score_saved
from gradwise.run.signals import load_proxy
from gradwise.stopping import stoppable
from gradwise.text import one_line
from gradwise.trainer import Trainer, TrainerMixin
from gradwise.training.arguments import training_arguments
from gradwise.training.early_stopping import EarlyStopping

MemoryForecast = Callable[[Recipe], dict[str, dict[str, int]] | None]
"""Bytes by part of each phase that a recipe will need; None where that is not known."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    run: RunDirectory
    finished: bool
    """False where the run was stopped, in training or in scoring, and can be resumed."""
    steps: int
    """Optimizer steps done."""


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    tell: Tell = say,
    progress: bool = True,
    shared: Path | None = None,
    score: bool = True,
    forecast_memory: MemoryForecast | None = None,
) -> Outcome:
    """Run a recipe in a folder, or resume the run of the same recipe that was stopped there.

    Under torchrun all ranks call it; the first one owns the folder.

    Args:
        recipe: with `model` and `data.train`.
        out: the run directory.
        tell: gets a sentence on each stage, on the first rank only.
        progress: show how far it is on standard error: bars on a terminal, elsewhere a line now and then.
        shared: folder of signals that runs share.
        score: measure the final model and write `scores.json`, where the recipe gives validation data or
            metrics.
        forecast_memory: gives the memory that the recipe will need, by phase and part, to be compared with
            what the run measures. If unset, nothing is compared.

    Returns:
        The outcome; `finished` is False after Ctrl-C or SIGTERM, with a checkpoint saved.

    Raises:
        GradwiseError: in one clear sentence, with everything that was saved before left as it was. A model
            that could not be scored is saved by then, and the next run in the folder only scores it.
    """
    run = RunDirectory(out)
    recipe = _complete(recipe, run)
    first = is_first()
    tell = tell if first else _silent
    shown = first and progress
    # First of all: it connects the ranks, and only then can one of them claim the folder for all.
    arguments = _arguments(recipe, run, shown)
    with run.opened(recipe), quiet_libraries(shown and on_terminal()):
        if on_first(lambda: run.finished):
            on_first(run.check_model)
            tell(f"The run in {run.path} is finished already.")
            scored = not score or _finish_scoring(recipe, run, arguments.device, tell=tell, shown=shown)
            steps = max((line["step"] for line in run.metrics()), default=0)
            return Outcome(run, scored, steps)
        build = partial(_build, recipe, run, arguments, tell=tell, shown=shown, shared=shared, score=score)
        build = partial(build, forecast_memory=forecast_memory if first else None)
        trainer, scoring, fingerprints = on_each(build)
        # Ranks that read different files would train on different samples under the same numbers.
        check_same(fingerprints, "The data")
        return _execute(trainer, run, tell, scoring)


def _finish_scoring(recipe: Recipe, run: RunDirectory, device: Any, *, tell: Tell, shown: bool) -> bool:
    """Whether a finished run is scored, after what is left of that was done."""
    if on_first(lambda: run.scored) or not due(recipe):
        return True
    # The weights are read now in any case, and safetensors has no checksum: a changed byte would only change
    # the score.
    on_first(lambda: run.check_model(contents=True))
    tell("Its model is not scored yet; scoring it.")
    return score_saved(recipe, run, device, bars=shown, tell=tell)


def _complete(recipe: Recipe, run: RunDirectory) -> Recipe:
    if recipe.model is None:
        raise RecipeError("The recipe names no model; give model.name, a hub name or a local folder.")
    if recipe.data is None or recipe.data.train is None:
        raise RecipeError("The recipe names no training data; give data.train.")
    _check_packing(recipe)
    if recipe.model.dtype == "float16" and recipe.adapter is None:
        raise RecipeError(
            "model.dtype: float16 cannot be trained, since its gradients overflow and vanish; use bfloat16, "
            "or float32 (on a GPU with train.fp16)."
        )
    # Commits instead of branches, which may move: a resumed run has to load the weights it began with.
    recipe = pinned(recipe, run.begun_with(), proxy=measures(recipe))
    # The folder's recipe must name the target that the Trainer aims at, or the Trainer would replace it.
    recipe = replace(recipe, select=recipe.select.with_target(recipe.goal))
    # So that the recipe in the run directory can be run from anywhere.
    return recipe.anchored()


def _check_packing(recipe: Recipe) -> None:
    """Refuse what cannot go with packing, before a model is loaded."""
    assert recipe.data is not None
    if recipe.data.packing is not True:
        return  # with `auto`, the model decides whether rows are packed
    refused = {
        "anneal": recipe.anneal is not None,
        f"order: {recipe.order.method}": recipe.order.influence is not None,
        "select.refresh_every": bool(getattr(recipe.select, "refresh_every", None)),
    }
    for what, is_refused in refused.items():
        if is_refused:
            raise RecipeError(
                f"{what} cannot go with packing, since it decides between steps of a fixed number of "
                "samples; set data.packing: false, or leave it out (docs/guide/limits.md)."
            )


def _arguments(recipe: Recipe, run: RunDirectory, bars: bool) -> Any:
    data = _present(recipe.data, Data)
    arguments = training_arguments(
        recipe.train,
        output_dir=run.checkpoints,
        seed=recipe.seed,
        ranks=world_size(),
        validation=data.validation is not None or data.target is not None,
        bars=bars,
        last=None if recipe.anneal is None else recipe.anneal.last,
    )
    if arguments.n_gpu > 1:
        raise RecipeError(
            "Several GPUs need a process each, or batch_size would not be global; use torchrun."
        )
    return arguments


def _build(
    recipe: Recipe,
    run: RunDirectory,
    arguments: Any,
    *,
    tell: Tell,
    shown: bool,
    shared: Path | None,
    score: bool,
    forecast_memory: MemoryForecast | None,
) -> tuple[Trainer, Scoring | None, list[str]]:
    """Everything that a run needs, read and checked; calls nothing collective.

    Returns:
        The trainer, what the run will be scored by, and fingerprints of the data.
    """
    model_settings, data = _present(recipe.model, Model), _present(recipe.data, Data)
    tokenizer = load_tokenizer(model_settings)
    parts = load_parts(data, tokenizer, goal=recipe.goal, annealing=recipe.annealing_data, progress=shown)
    pool, held_out, annealing = parts.train, parts.validation, parts.annealing
    reports = [str(pool.report), *([] if annealing is None else [f"Annealing phase: {annealing.report}"])]
    for sentence in (*reports, *parts.notes):
        tell(sentence)
    target = parts.target if recipe.uses_target else None
    if data.target is not None and target is None:
        tell(f"Note: select: {recipe.select.method} does not use data.target.")
    first = is_first()
    pools = {
        "fingerprint": pool,
        # What measures may choose as well: for the annealing phase, or the best checkpoint.
        "held_out_fingerprint": held_out,
        "target_fingerprint": target,
        "anneal_fingerprint": annealing,
    }
    fingerprints = {key: part.fingerprint for key, part in pools.items() if part is not None}
    if first:
        for key, fingerprint in fingerprints.items():
            run.check_data(fingerprint, key=key)
    wanted = score and due(recipe)
    # Before the model is loaded: an unknown task, or a record that makes no question, would otherwise end the
    # run when its model is trained.
    scoring = Scoring.of(recipe, tokenizer, held_out, bars=shown, tell=tell) if wanted else None
    expected = forecast_memory(recipe) if forecast_memory is not None else None
    if expected:
        peak = max(sum(parts.values()) for parts in expected.values())
        tell(f"Tensors are expected to take at most {size_text(peak)} of memory.")
    # A fresh adapter is drawn at random while the model loads.
    transformers.set_seed(recipe.seed)
    start = time.perf_counter()
    model = load_model(model_settings, recipe.adapter, tell=tell)
    check_length(model, data.max_length)
    if scoring is not None:
        scoring.check_model(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    took = time.perf_counter() - start
    tell(f"{model_settings.name}: {parameters / 1e6:,.1f} M parameters, loaded in {took:.0f} s")
    if arguments.gradient_checkpointing and not getattr(model, "supports_gradient_checkpointing", True):
        raise RecipeError(
            f"train.gradient_checkpointing: {type(model).__name__} does not support it; leave it out."
        )
    proxy = load_proxy(recipe, pool, target, progress=shown)
    make = partial(
        Trainer,
        model=model,
        args=arguments,
        train_dataset=pool.dataset,
        eval_dataset=held_out.dataset if held_out is not None else None,
        # Saved beside the model, so with the template that was learned.
        processing_class=with_template(tokenizer, data.chat_template),
        data_collator=Collator.for_tokenizer(tokenizer),
        recipe=recipe.for_trainer(),
        run_dir=run.owned,
        packed_length=data.max_length if data.packing else None,
        unpack_if_needed=data.packing == "auto",
        shared_signals=shared,
        proxy=proxy,
        target_dataset=None if target is None else target.dataset,
        target_for_select=recipe.goal is not None,
        anneal_dataset=None if annealing is None else annealing.dataset,
    )
    try:
        trainer = make()
    except (ValueError, ImportError) as error:  # what transformers rejects of its own settings
        raise RecipeError(f"train: {one_line(error, 400)}.") from None
    trainer.session.tell = tell
    trainer.step_memory.forecast = expected
    if recipe.train.early_stopping_patience is not None:
        trainer.add_callback(
            EarlyStopping(trainer.session.record, trainer.session.say, recipe.train.early_stopping_patience)
        )
    if scoring is not None:
        scoring.check_whole(_sharded(trainer))
    described = {**fingerprints, "report": pool.report.as_dict()}
    if annealing is not None:
        described["anneal_report"] = annealing.report.as_dict()
    size = {"name": model_settings.name, "revision": model_settings.revision, "parameters": parameters}
    if first:
        run.note_environment(environment(data=described, model=size))
    show_progress(trainer, shown)
    return trainer, scoring, list(fingerprints.values())


def _execute(trainer: Trainer, run: RunDirectory, tell: Tell, scoring: Scoring | None) -> Outcome:
    # All ranks must resume from the same one.
    resume, passed_over = on_first(trainer.last_checkpoint)
    for sentence in passed_over:
        tell(f"Warning: {sentence}")
    if resume:
        tell(f"Resuming from {resume}.")
    with _until_stopped(trainer, tell):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    steps = trainer.state.global_step
    if trainer.session.stopped:
        tell(
            f"Stopped after step {steps} of {trainer.state.max_steps}; a checkpoint is saved. "
            "Run the same command to resume."
        )
        return Outcome(run, False, steps)
    _close(trainer, run, tell)
    return Outcome(run, scoring is None or _score(trainer, run, scoring), steps)


def _score(trainer: Trainer, run: RunDirectory, scoring: Scoring) -> bool:
    if _sharded(trainer):
        scoring.tell("The model is sharded and not scored here; the same command in one process scores it.")
        return True
    return scoring.write(trainer.model, run, first=trainer.is_world_process_zero())


def _sharded(trainer: Trainer) -> bool:
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled


def _close(trainer: TrainerMixin, run: RunDirectory, tell: Tell) -> None:
    record = trainer.session.record
    record.event(
        "finished",
        trainer.state.global_step,
        record.seconds,
        peak_memory=peak_memory(trainer.args.device),
        total_parameters=sum(p.numel() for p in trainer.model.parameters()),
        trainable_parameters=trainer.session.trainable,
    )
    record.state()  # forces the record to disk before the model makes the run count as finished
    # Placed before anything is uploaded: a network that fails must not keep the run from ending.
    run.save_model(partial(trainer.save_model, _internal_call=True))
    if trainer.args.push_to_hub:
        _push(trainer, run, tell)


def _push(trainer: Any, run: RunDirectory, tell: Tell) -> None:
    try:
        trainer.push_to_hub(commit_message="Model save", revision=trainer.args.hub_revision)
    except Exception as error:  # whatever the network, the hub or its library raise
        tell(
            f"Warning: the model is saved in {run.model}, and could not be uploaded "
            f"({one_line(error, 200)}); upload it with "
            f"`hf upload {trainer.args.hub_model_id} {run.model}`."
        )


def _until_stopped(trainer: Trainer, tell: Tell) -> AbstractContextManager[None]:
    """Ctrl-C and SIGTERM end the run after the current step, with a checkpoint; a second one at once."""

    def ask(name: str) -> None:
        trainer.session.stop_requested = True
        tell(f"{name}: stopping after this step, with a checkpoint. Once more to stop at once.")

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    return stoppable(ask, interrupt)


def _present(section: object, kind: type) -> Any:
    assert isinstance(section, kind)
    return section


def _silent(_: str) -> None:
    pass
