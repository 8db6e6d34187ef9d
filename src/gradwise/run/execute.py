"""One run from recipe to trained model: load, decide, train, save; stop and go on at any point."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from gradwise.data import Collator, load, overlap
from gradwise.errors import RecipeError
from gradwise.recipe import Data, Model, Recipe, Train
from gradwise.run.directory import RunDirectory, naming_a_full_disk
from gradwise.run.environment import environment, peak_memory
from gradwise.run.model import check_length, load_model, load_tokenizer, resolved_revision
from gradwise.run.ranks import is_first, rank_count
from gradwise.training.arguments import training_arguments
from gradwise.training.checkpoint import last_whole
from gradwise.training.trainer import Trainer

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    run: RunDirectory
    finished: bool
    """False where the run was stopped and can go on."""
    steps: int
    """Optimizer steps done."""


def train(recipe: Recipe, out: str | Path, *, tell: Tell = print, progress: bool | None = None) -> Outcome:
    """Run a recipe in a folder, or go on where a run of the same recipe was stopped there.

    Args:
        recipe: with `model` and `data.train`.
        out: the run directory.
        tell: gets a sentence on each stage, on the first rank only.
        progress: show bars; by default when standard error is a terminal.

    Returns:
        What came of it; `finished` is False after Ctrl-C or SIGTERM, with a checkpoint saved.

    Raises:
        GradwiseError: in one clear sentence, with everything that was saved before left as it was.
    """
    recipe = _complete(recipe)
    run = RunDirectory(out)
    first = is_first()
    tell = tell if first else _silent
    bars = first and (sys.stderr.isatty() if progress is None else progress)
    with run.opened(recipe, writes=first), naming_a_full_disk(run.path), _quiet_libraries(bars):
        if run.finished:
            tell(f"The run in {run.path} is finished already.")
            return Outcome(run, True, _steps_done(run))
        trainer = _build(recipe, run, tell=tell, bars=bars)
        return _execute(trainer, run, tell)


def _complete(recipe: Recipe) -> Recipe:
    if recipe.model is None:
        raise RecipeError("The recipe names no model; give model.name, a hub name or a local folder.")
    if recipe.data is None or recipe.data.train is None:
        raise RecipeError("The recipe names no training data; give data.train.")
    if recipe.model.revision is None and not Path(recipe.model.name).exists():
        revision = resolved_revision(recipe.model)
        recipe = replace(recipe, model=replace(recipe.model, revision=revision))
    # So that the recipe in the run directory can be run from anywhere.
    return recipe.anchored()


def _build(recipe: Recipe, run: RunDirectory, *, tell: Tell, bars: bool) -> Trainer:
    model_settings, data = _present(recipe.model, Model), _present(recipe.data, Data)
    tokenizer = load_tokenizer(model_settings)
    pool = load(data, "train", tokenizer, progress=bars)
    tell(str(pool.report))
    held_out = load(data, "validation", tokenizer, progress=bars) if data.validation is not None else None
    if held_out is not None and (shared := overlap(pool, held_out)):
        tell(
            f"Warning: {shared} of {len(held_out.dataset)} held-out samples also stand in the training data."
        )
    run.check_data(pool.fingerprint)
    arguments = training_arguments(
        recipe.train,
        output_dir=run.checkpoints,
        seed=recipe.seed,
        ranks=rank_count(),
        validation=held_out is not None,
        bars=bars,
    )
    if arguments.n_gpu > 1:
        raise RecipeError(
            "Several GPUs need a process each, or batch_size would not be global; use torchrun."
        )
    transformers.set_seed(recipe.seed)
    start = time.perf_counter()
    model = load_model(model_settings, recipe.adapter)
    check_length(model, data.max_length)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    took = time.perf_counter() - start
    tell(f"{model_settings.name}: {parameters / 1e6:,.1f} M parameters, loaded in {took:.0f} s")
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=pool.dataset,
        eval_dataset=held_out.dataset if held_out is not None else None,
        processing_class=tokenizer,
        data_collator=Collator.for_tokenizer(tokenizer),
        recipe=replace(recipe, model=None, data=None, train=Train(), adapter=None),
        run_dir=run.path,
        packed_length=data.max_length if data.packing else None,
    )
    if trainer.is_world_process_zero():
        told = {"fingerprint": pool.fingerprint, "report": pool.report.as_dict()}
        size = {"name": model_settings.name, "revision": model_settings.revision, "parameters": parameters}
        run.note_environment(environment(data=told, model=size))
    _show_progress(trainer, bars)
    return trainer


def _execute(trainer: Trainer, run: RunDirectory, tell: Tell) -> Outcome:
    resume, passed_over = last_whole(run.checkpoints) if run.checkpoints.is_dir() else (None, [])
    for sentence in passed_over:
        tell(f"Warning: {sentence}")
    if resume:
        tell(f"Going on from {resume}.")
    with _stoppable(trainer, tell):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    steps = trainer.state.global_step
    if trainer.session.stopped:
        tell(
            f"Stopped after step {steps} of {trainer.state.max_steps}; a checkpoint is saved. "
            "Run the same command to go on."
        )
        return Outcome(run, False, steps)
    _close(trainer, run)
    return Outcome(run, True, steps)


def _close(trainer: Any, run: RunDirectory) -> None:
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
    run.save_model(
        trainer.save_model, trainer.accelerator.wait_for_everyone, first=trainer.is_world_process_zero()
    )


def _steps_done(run: RunDirectory) -> int:
    return max((line["step"] for line in run.metrics()), default=0)


@contextmanager
def _stoppable(trainer: Trainer, tell: Tell) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run after the current step, with a checkpoint; a second one at once."""

    process = os.getpid()

    def ask(number: int, _: Any) -> None:
        if os.getpid() != process:  # a loader worker, which inherits the handler
            return
        if trainer.session.stop_requested:
            raise KeyboardInterrupt
        trainer.session.stop_requested = True
        name = signal.Signals(number).name
        tell(f"{name}: stopping after this step, with a checkpoint. Once more to stop at once.")

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Bar(ProgressCallback):
    """The Trainer's bars, with the loss beside them instead of a line for each log."""

    def on_log(self, _: Any, state: Any, __: Any, logs: Any = None, **___: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs:
            shown = {name: float(logs[name]) for name in ("loss", "eval_loss") if name in logs}
            self.training_bar.set_postfix({**getattr(self, "_shown", {}), **shown})
            self._shown = shown


def _show_progress(trainer: Trainer, bars: bool) -> None:
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if bars:
        trainer.add_callback(Bar())


@contextmanager
def _quiet_libraries(bars: bool) -> Iterator[None]:
    """Libraries speak up on errors only, and show bars only where we do."""
    import datasets

    logging = transformers.utils.logging
    verbosity, shown, hidden = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        datasets.are_progress_bars_disabled(),
    )
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
        if not hidden:
            datasets.enable_progress_bars()


def _present(section: Any, kind: type) -> Any:
    assert isinstance(section, kind)
    return section


def _silent(_: str) -> None:
    pass
