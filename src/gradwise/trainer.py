"""`gradwise.Trainer`: the Hugging Face Trainer fed by a plan, with a layer policy around its optimizer.

Accumulation, clipping, schedulers, mixed precision, evaluation, trackers and hub upload stay the Trainer's.
What is overridden, and why:

- `get_train_dataloader` returns a ledger that is only counted, never drawn from; `get_batch_samples` brings
  the batches of step `global_step` from the plan. Resuming is then nothing but a number.
- `training_step` measures the gradient after the last micro-batch of a step, before it is clipped.
- `_save_checkpoint` completes the Trainer's checkpoint by gradwise's state and a marker.
- `accelerator.prepare_model` does not wrap in DistributedDataParallel where layers are switched: its buckets
  stay full-size, and it refuses layers that freeze later.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader

from gradwise.data import Collator, check_dropped, is_indexable
from gradwise.errors import CheckpointError, RecipeError
from gradwise.evaluation.settings import HELD_OUT_LOSS
from gradwise.folders import OwnedFolder
from gradwise.integrations.trl import repeated_prompts
from gradwise.planning import FixedPlanner, Planner
from gradwise.precision import autocast_of, autocasting
from gradwise.ranks import on_first
from gradwise.recipe import Recipe
from gradwise.session import Session
from gradwise.session_callback import SessionCallback
from gradwise.session_trainer_loader import TrainerLoaderSession
from gradwise.signals.model_state import unwrapped
from gradwise.signals.vocabulary import padding_collator
from gradwise.stopping import spare_worker
from gradwise.structure import group_layers
from gradwise.switching import leave_unwrapped
from gradwise.training import checkpoint as checkpoints
from gradwise.training.annealing_data import appended, check_annealing_data
from gradwise.training.arguments import DECAY_SHARE, decay_steps
from gradwise.training.memory import StepMemory
from gradwise.training.offload import offload_state
from gradwise.training.plan import Plan
from gradwise.training.record import EVALUATION
from gradwise.training.saving import check_saves
from gradwise.training.sharded_checkpoint import ShardedCheckpoints, allowed_to_save
from gradwise.training.sharding import by_accelerate, shard_in_time
from gradwise.training.support import (
    check_output,
    check_phase,
    check_planned,
    check_sections,
    check_supported,
    check_trainer_loader,
    check_types,
    check_uploads,
    trainer_loader_problem,
)
from gradwise.training.target import target_of
from gradwise.training.trackers import add_trackers, guard_trackers, without_trackers
from gradwise.training.weighting import KEY, WeightedLoss


class TrainerMixin(ShardedCheckpoints):
    """What gradwise adds to a Trainer class; use `gradwise.Trainer` or `gradwise.with_gradwise(cls)`."""

    serves_itself: ClassVar[bool] = False
    """Whether the Trainer class has a loader of its own, which a plan must not replace."""

    def __init__(
        self,
        *args: Any,
        recipe: Recipe | None = None,
        plan: Plan | None = None,
        run_dir: str | Path | OwnedFolder | None = None,
        packed_length: int | None = None,
        unpack_if_needed: bool = False,
        shared_signals: str | Path | None = None,
        proxy: Any = None,
        target_dataset: Any = None,
        target_for_select: bool = True,
        anneal_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        """As the underlying Trainer, and:

        Args:
            recipe: its `select`, `order`, `layers`, `anneal`, `signals`, `weights` and `seed`; the other
                sections are the trainer's own arguments and must be left out.
            plan: follow this plan instead of making one from the recipe.
            run_dir: where metrics, events and the plan are written; if unset, the trainer's output_dir.
            packed_length: pack consecutive samples of the plan into rows of at most this many tokens.
            unpack_if_needed: train unpacked where the model lets packed samples see each other. If unset,
                that is refused.
            shared_signals: folder for signals that several runs need: the first run computes and keeps them,
                later ones read them and are charged their cost.
            proxy: (model, samples, collator) that measure in place of this trainer's own, sample i being
                sample i of the training data; what `signals.model` of a recipe stands for. A fourth part is
                the target in the same tokens, needed where these are not the tokens of the training data.
            target_dataset: examples of what the model should become good at, tokenised as the training data
                are; a selection that aims at a target aims at them, and `anneal` chooses by them. They
                measure nothing. If unset and `select.target` is `validation`, half of the eval_dataset
                chooses and the other half measures.
            target_for_select: if False, only `anneal` chooses by the target_dataset.
            anneal_dataset: samples that only the annealing phase trains on, with the columns of the training
                data; what `anneal.data` of a recipe stands for.
        """
        recipe = Recipe() if recipe is None else recipe
        check_types(recipe, plan, packed_length, unpack_if_needed)
        if recipe.signals.model is not None and proxy is None:
            raise RecipeError("signals.model is for `gradwise train`; with a Trainer, give it a `proxy`.")
        if plan is not None:
            check_planned(recipe)
        self.proxy = proxy
        check_sections(recipe)
        check_output(kwargs.get("args", args[1] if len(args) > 1 else None), run_dir)
        trainer_arguments = [*args, *kwargs.values()]
        with without_trackers(trainer_arguments) as trackers, allowed_to_save(trainer_arguments):
            super().__init__(*args, **kwargs)
        guard_trackers(self.callback_handler.callbacks, self._layer_numbers)
        add_trackers(self, trackers, self._layer_numbers)
        check_supported(self, recipe)
        check_annealing_data(recipe, anneal_dataset, self.train_dataset, proxied=proxy is not None)
        self.anneal_dataset = anneal_dataset
        target = target_of(
            recipe, target_dataset, self.eval_dataset, planned=plan is not None, selects=target_for_select
        )
        self.target_dataset, self.eval_dataset = target.samples, target.evaluation
        recipe = replace(recipe, select=target.method)
        if _is_plain_collator(self.data_collator) and "data_collator" not in kwargs and len(args) < 3:
            self.data_collator = self._padding_collator()
        shared = None if shared_signals is None else _path(shared_signals)
        folder = run_dir if isinstance(run_dir, OwnedFolder) else _path(run_dir or self.args.output_dir)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        planner = Planner(recipe, batch_size) if plan is None else FixedPlanner(plan)
        indexable = is_indexable(self.train_dataset)
        if uses_trainer_loader := not indexable or self.serves_itself:
            check_trainer_loader(
                recipe,
                has_plan=plan is not None,
                packs=packed_length is not None,
                problem=trainer_loader_problem(self, indexable),
                plannable=indexable and repeated_prompts(self.underlying_sampler()) is not None,
            )
        self.session = (TrainerLoaderSession if uses_trainer_loader else Session)(
            self,
            recipe,
            planner,
            folder=folder,
            shared=shared,
            packed_length=packed_length,
            unpack_if_needed=unpack_if_needed,
        )
        # DistributedDataParallel refuses layers that freeze after wrapping. The switch averages the active
        # layers' gradients itself, unless FSDP2 does.
        if recipe.layers.policy is not None and self.args.world_size > 1 and not by_accelerate(self):
            leave_unwrapped(self.accelerator)
        self.last_grad_norm: Any = None
        self._verified: Path | None = None
        self._save_limit = self.args.save_total_limit
        self.step_memory = StepMemory()
        self.add_callback(SessionCallback(self.session))
        for sentence in target.notes:
            self.session.say(sentence)

    def target_samples(self) -> tuple[Any, Callable[[list[Any]], dict[str, Any]]]:
        """The target without the columns the model does not take, and the collator."""
        return self._taken_columns(self.target_dataset, "target")

    def _padding_collator(self) -> Collator:
        if self.processing_class is not None:
            return Collator.for_tokenizer(self.processing_class)
        return padding_collator(self.model)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: object, **kwargs: object) -> Any:
        """Train; with `resume_from_checkpoint=True` resume from the latest whole checkpoint in output_dir.

        Raises:
            CheckpointError: when there is none, or the one named is incomplete or damaged, or was taken with
                other decisions; or when a new run would start over the checkpoints of an earlier one.
            RecipeError: output_dir or run_dir holds files that gradwise did not write, under names that it
                would write; or another run is writing there.
        """
        if is_indexable(self.train_dataset) and not len(self.train_dataset):
            raise RecipeError("The training data set is empty.")
        self._check_columns()
        with self.session.claimed():
            resume = self._checkpoint(resume_from_checkpoint)
            self.session.open(resume)
            try:
                with self._settings_while_training(resumed=resume is not None), self.session.tracked(resume):
                    result = super().train(str(resume) if resume else None, *args, **kwargs)
                self.session.flush()
                # The record first: a resumed run cuts it back to its checkpoint.
                if self.session.stopped:
                    self._save_checkpoint(self.model_wrapped, None)
                return result
            finally:
                self.session.close()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the underlying Trainer's; a training loss comes with the numbers of the latest decisions."""
        super().log(logs | self.session.record.numbers if "loss" in logs else logs, *args, **kwargs)

    def _layer_numbers(self) -> dict[str, float]:
        return self.session.record.layers

    def _check_columns(self) -> None:
        """Refuse what the underlying Trainer would drop though it matters."""
        if self.args.remove_unused_columns:
            self._set_signature_columns_if_needed()
            held_out = self.eval_dataset
            for samples in (
                self.train_dataset,
                *([] if self.anneal_dataset is None else [self.anneal_dataset]),
                *(held_out.values() if isinstance(held_out, dict) else [held_out]),
            ):
                check_dropped(samples, self._signature_columns, type(self.model).__name__)

    @contextmanager
    def _settings_while_training(self, resumed: bool) -> Iterator[None]:
        """Arguments that are gradwise's while it trains, given back afterwards."""
        args = self.args
        names = ("eval_on_start", "save_total_limit", "load_best_model_at_end", "lr_scheduler_kwargs")
        values = {name: getattr(args, name) for name in names}
        # A resumed run has evaluated at its start already; old checkpoints go only once a new one is whole.
        args.eval_on_start = args.eval_on_start and not resumed
        self._save_limit, args.save_total_limit = args.save_total_limit, None
        try:
            yield
        finally:
            for name, value in values.items():
                setattr(args, name, value)

    def hyperparameter_search(self, *_: object, **__: object) -> Any:
        """Refused: its trials share one output_dir, whose checkpoints would be those of different runs."""
        raise RecipeError("gradwise does not search hyperparameters; start one run for each setting.")

    def _checkpoint(self, resume: str | bool | None) -> Path | None:
        if not resume:
            return None
        # All ranks must resume from the same one, and reading all of it once is enough.
        path, passed_over = on_first(lambda: self._checkpoint_to_resume(resume))
        for sentence in passed_over:
            transformers.utils.logging.get_logger("gradwise").warning(sentence)
        return path

    def _checkpoint_to_resume(self, resume: str | bool) -> tuple[Path, list[str]]:
        if resume is True:
            last, passed_over = self.last_checkpoint()
            if last is None:
                raise CheckpointError(
                    f"There is no whole checkpoint in {self.args.output_dir} to resume from."
                )
            return last, passed_over
        path = _path(str(resume))
        if path != self._verified:
            checkpoints.check_whole(path)
        return path, []

    def last_checkpoint(self) -> tuple[Path | None, list[str]]:
        """The latest whole checkpoint in output_dir, and a sentence for each later one that is not."""
        self._verified, passed_over = checkpoints.last_whole(Path(self.args.output_dir))
        return self._verified, passed_over

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The ledger that steps are counted by; the batches themselves come through `get_batch_samples`."""
        check_saves(self)  # here, since the Trainer has aligned the model's special tokens by now
        resumes = self.session.resumed_from is not None
        measures = self.session.planner.measures_first and self.proxy is None and not resumes
        shard_in_time(self, measures=measures, offloads=self._offloads)
        return self.session.prepare()

    def underlying_loader(self) -> DataLoader[Any]:
        """The loader that the underlying Trainer would use; every rank reads a stream itself."""
        config = self.accelerator.dataloader_config
        if config.dispatch_batches is None and not is_indexable(self.train_dataset):
            # Otherwise the first rank joins the batches of all, which must then be of one length.
            config.dispatch_batches = False
        return super().get_train_dataloader()

    def underlying_sampler(self) -> Any:
        """The sampler of that loader, as the underlying Trainer makes it."""
        return super()._get_train_sampler()

    def _get_train_sampler(self, *args: object, **kwargs: object) -> Any:
        """That of the plan's prompts, where a plan decides which of them the trainer's loader repeats."""
        prompts = getattr(self.session, "prompts", None)
        return super()._get_train_sampler(*args, **kwargs) if prompts is None else prompts

    def get_eval_dataloader(self, *args: object, **kwargs: object) -> DataLoader[Any]:
        """As the underlying Trainer's, with every sample; its workers leave signals to this process."""
        # drop_last is about training steps; an evaluation that drops samples would compare runs on different
        # ones.
        dropping, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            loader = super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = dropping
        if getattr(loader, "num_workers", 0) and getattr(loader, "worker_init_fn", None) is None:
            loader.worker_init_fn = spare_worker
        return loader

    def get_batch_samples(
        self,
        epoch_iterator: object,  # noqa: ARG002
        num_batches: int,  # noqa: ARG002
        device: torch.device,
    ) -> tuple[list[Any], Any]:
        """The plan's micro-batches of the current step, and their label tokens over all ranks."""
        # Here, and not in a callback: the Trainer asks for the batches of a step before it tells callbacks
        # that the step begins.
        self.session.draw_layers()
        self.session.decide()
        parts = self.session.batches()
        tokens = self._tokens_of(parts, device)
        self.session.count_tokens(tokens)
        return parts, tokens

    def create_optimizer(self, *args: object, **kwargs: object) -> Any:
        """As the underlying Trainer's; state that is to be offloaded is, before a checkpoint's is loaded."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self._offloads:
            groups = group_layers(self.model)
            offload_state(unwrapped(optimizer), [*groups.blocks, groups.outside])
        return optimizer

    @property
    def _offloads(self) -> bool:
        policy = self.session.recipe.layers.policy
        return policy is not None and policy.state == "offload"

    def create_scheduler(self, num_training_steps: int, *args: object, **kwargs: object) -> Any:
        """As the Trainer's, with a decay given as a share of the steps turned into a number of them."""
        warming = self.args.get_warmup_steps(num_training_steps)
        if warming >= num_training_steps:
            self.session.say(
                f"Warning: the learning rate takes {warming} steps to rise, and the run has "
                f"{num_training_steps}; it never reaches the rate that was asked for."
            )
        scheduler_kwargs = dict(self.args.lr_scheduler_kwargs or {})
        share = scheduler_kwargs.pop(DECAY_SHARE, None)
        if self.session.recipe.anneal is not None:
            share = self.session.recipe.anneal.last
            check_phase(self.args, scheduler_kwargs, share, num_training_steps)
        if share is not None:
            scheduler_kwargs = {"num_decay_steps": decay_steps(share, num_training_steps), **scheduler_kwargs}
            self.args.lr_scheduler_kwargs = scheduler_kwargs
        return super().create_scheduler(num_training_steps, *args, **kwargs)

    def _tokens_of(self, parts: list[Any], device: torch.device) -> Any:
        return super().get_batch_samples(iter(parts), len(parts), device)[1]

    def training_step(self, model: object, inputs: object, *args: object, **kwargs: object) -> torch.Tensor:
        """One micro-batch, and after the last one of a step a measurement of the gradient."""
        with self.step_memory.passes(self.state.global_step):
            loss = self._weighted_step(model, inputs, *args, **kwargs)
        self.session.after_micro_batch(loss)
        if self.accelerator.sync_gradients:
            self.session.after_backward()
        return loss

    def _weighted_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The Trainer's forward and backward, with the weights that the micro-batch brings in its loss."""
        # Trainers that generate get a list of prompts.
        weights = None if isinstance(inputs, list) else inputs.pop(KEY, None)
        with WeightedLoss(self.model).using(weights):
            return super().training_step(model, inputs, *args, **kwargs)

    def loss_of(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The training loss of a batch, computed as training does."""
        autocast = autocasting(self.args.device, autocast_of(self.args))
        with self.compute_loss_context_manager(), autocast:
            return self.compute_loss(self.model, self._prepare_inputs(inputs))

    def probe(self, parts: list[Any]) -> None:
        """Forward and backward over the micro-batches of one step, outside of the Trainer's loop."""
        tokens = self._tokens_of(parts, self.args.device)
        self.current_gradient_accumulation_steps = len(parts)
        for part in parts:
            with self.step_memory.probe():
                self._weighted_step(self.model_wrapped, part, tokens)

    def _get_grad_norm(self, *args: object, **kwargs: object) -> Any:
        self.last_grad_norm = super()._get_grad_norm(*args, **kwargs)
        return self.last_grad_norm

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the underlying Trainer's; the run is not charged for it."""
        with self.session.record.uncharged(EVALUATION):
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: object, **kwargs: object) -> Any:
        """As the underlying Trainer's, on any number of ranks, with the held-out loss among its metrics."""
        held_out = self.session.held_out
        with held_out.measuring():
            output = super().evaluation_loop(*args, **kwargs)
        if (loss := held_out.total()) is not None:
            output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_{HELD_OUT_LOSS}"] = loss
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: object, **kwargs: object
    ) -> Any:
        """As the underlying Trainer's, which the held-out loss is read from."""
        with self.session.held_out.batch(model, inputs) as inputs:
            return super().prediction_step(model, inputs, *args, **kwargs)

    def _save_checkpoint(self, *args: object, **kwargs: object) -> None:
        save = super()._save_checkpoint
        self.session.save(lambda: save(*args, **kwargs), self._save_limit)

    def push_to_hub(self, *args: object, **kwargs: object) -> Any:
        """As the underlying Trainer's, unless the run's record lies in what it uploads."""
        check_uploads(self.args, self.session.folder)
        return super().push_to_hub(*args, **kwargs)

    def _load_best_model(self) -> None:
        """As the underlying Trainer's, from a checkpoint that is whole; otherwise the last weights stay."""
        best = Path(self.state.best_model_checkpoint or "")
        try:
            on_first(lambda: checkpoints.check_whole(best))
        except CheckpointError as error:
            transformers.utils.logging.get_logger("gradwise").warning(
                f"{error} The model of the last step is kept instead of the best one."
            )
            return
        super()._load_best_model()

    def training_samples(self) -> tuple[Any, Callable[[list[Any]], dict[str, Any]]]:
        """The training data without the columns the model does not take, and the collator."""
        return self._taken_columns(self.train_dataset, "training")

    def planned_samples(self) -> tuple[Any, Any, Callable[[list[Any]], dict[str, Any]]]:
        """What a plan points into: the training data, and behind them those of the annealing phase only; the
        same without the columns that the model does not take; and the collator."""
        both = appended(self.train_dataset, self.anneal_dataset)
        return both, *self._taken_columns(both, "training")

    def validation_samples(self) -> tuple[Any, Callable[[list[Any]], dict[str, Any]]]:
        """The same of the validation data."""
        return self._taken_columns(self.eval_dataset, "evaluation")

    def _taken_columns(self, dataset: object, name: str) -> tuple[Any, Callable[[list[Any]], dict[str, Any]]]:
        if hasattr(dataset, "column_names"):
            return self._remove_unused_columns(dataset, name), self.data_collator
        return dataset, self._get_collator_with_removed_columns(self.data_collator, name)


class Trainer(TrainerMixin, transformers.Trainer):
    """The Hugging Face Trainer with gradwise's selection, order and layer policies:

    trainer = Trainer(model=model, args=args, train_dataset=data, recipe=Recipe(layers=Grass(active=2)))
    trainer.train()
    """


def with_gradwise(cls: type) -> Any:
    """The same abilities on another subclass of the Hugging Face Trainer, TRL's among them.

    A class with a loader of its own keeps it. Where that repeats prompts (GRPO's, RLOO's), a plan says which
    prompts and in which order; otherwise such a class takes layer policies alone.

    Args:
        cls: a subclass of `transformers.Trainer`.

    Returns:
        A subclass of it that takes the arguments of `TrainerMixin` besides its own.
    """
    if not (isinstance(cls, type) and issubclass(cls, transformers.Trainer)):
        raise RecipeError(f"with_gradwise takes a subclass of transformers.Trainer; found {cls!r}.")
    if issubclass(cls, TrainerMixin):
        return cls
    # A subclass that serves batches itself would have them replaced by the plan's, without a word.
    if _overrides(cls, "get_batch_samples"):
        raise RecipeError(
            f"{cls.__name__} has its own get_batch_samples, which gradwise would replace; it cannot serve it."
        )
    serves = _overrides(cls, "get_train_dataloader") or _overrides(cls, "_get_train_sampler")
    parts = {"__doc__": cls.__doc__, "__module__": __name__, "serves_itself": serves}
    return type(f"Gradwise{cls.__name__}", (TrainerMixin, cls), parts)


def _overrides(cls: type, method: str) -> bool:
    return getattr(cls, method) is not getattr(transformers.Trainer, method)


def _path(path: str | Path) -> Path:
    return Path(path).expanduser()


def _is_plain_collator(collator: object) -> bool:
    """Whether nobody chose a collator: the Trainer's defaults cannot pad labels."""
    defaults = (transformers.DataCollatorWithPadding,)
    return collator is transformers.default_data_collator or type(collator) in defaults
