"""One training run seen from gradwise's side: its plan, its feeder, its layer switch, its record.

The trainer subclass in `gradwise.trainer` only forwards the Trainer's own calls to a session, in this order:
`open` (record), `prepare` (plan and loader), `begin` (optimizer exists, checkpoint loaded); for each step
`draw_layers`, `decide`, `batches`, `before_step`, `after_micro_batch`, `after_backward`, `before_update`,
`after_step`; `save` for a checkpoint; `close` at the end.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from gradwise import console
from gradwise.data import token_lengths
from gradwise.data.records import few
from gradwise.errors import GradwiseError
from gradwise.folders import OwnedFolder, claimed
from gradwise.host import HostTrainer, RunSamples, context_of, samples_of, unpacked
from gradwise.planning import Planner, RunContext
from gradwise.ranks import check_same, is_first, on_first, wait_for_all
from gradwise.recipe import Recipe
from gradwise.resuming import check_plan, decisive_sections, opened
from gradwise.signals.vocabulary import check_tokens
from gradwise.switching import layer_switch, run_probe
from gradwise.training import checkpoint as checkpoints
from gradwise.training import recipe_file
from gradwise.training.batches import Batches
from gradwise.training.feeder import Feeder
from gradwise.training.held_out import HeldOutLoss, record_name
from gradwise.training.layers import LayerSwitch
from gradwise.training.layout import Layout, ledger, loader_settings, packer
from gradwise.training.plan import Plan
from gradwise.training.record import CHECKPOINT, FILES, NonFiniteError, RunRecord
from gradwise.training.saving import write_or_explain
from gradwise.training.timing import time_forward_backward
from gradwise.training.trackers import one_run


class Session:
    """State of one run beside the Trainer's own.

    Args:
        trainer: the trainer it belongs to.
        recipe: which layers to update, the seed, and what a resumed run must have been started with.
        planner: makes the plan, and changes it when a decision is due.
        folder: where `metrics.jsonl`, `events.jsonl` and `plan/` go, or one that the caller has claimed.
        shared: folder in which several runs keep the signals that they have in common.
        packed_length: pack consecutive samples of the plan into rows of at most this many tokens.
        unpack_if_needed: train unpacked where packed samples would see each other, instead of refusing.
    """

    follows_memory = True
    """Whether each tensor of a step can be followed."""

    def __init__(
        self,
        trainer: HostTrainer,
        recipe: Recipe,
        planner: Planner,
        *,
        folder: Path | OwnedFolder,
        shared: Path | None = None,
        packed_length: int | None = None,
        unpack_if_needed: bool = False,
    ) -> None:
        self.trainer = trainer
        self.recipe = recipe
        self.owned = folder if isinstance(folder, OwnedFolder) else None
        self.folder = folder.path if isinstance(folder, OwnedFolder) else folder
        self.shared = shared
        self.packed_length = packed_length
        self.unpack_if_needed = unpack_if_needed
        self.plan: Plan | None = None
        self.record = RunRecord(self.folder, writes=is_first())
        self.held_out = HeldOutLoss(trainer.args, trainer.accelerator)
        self.resumed_from: Path | None = None
        self.stop_requested = False
        self.stopped = False
        self.switch: LayerSwitch | None = None
        self.trainable = 0
        self.saved_step = -1
        self.planner = planner
        self.tell: Callable[[str], object] = console.say
        """Gets sentences for the user, on the first rank."""
        self._layout: Layout | None = None
        self._samples: RunSamples | None = None
        self._state: dict[str, Any] | None = None
        self._decided_at = -1
        self._feeder: Feeder | None = None
        self._loss: Tensor | None = None
        self._tokens: Any = None
        self._lengths: NDArray[np.int64] | None = None
        self._learning_rate: Any = None

    @property
    def args(self) -> TrainingArguments:
        """The trainer's TrainingArguments."""
        return self.trainer.args

    @property
    def output(self) -> Path:
        """Folder of the checkpoints."""
        return Path(str(self.args.output_dir))

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.trainer.state.global_step

    @property
    def schedule(self) -> Batches:
        """The plan cut into steps."""
        assert self._feeder is not None
        return self._feeder.batches

    @property
    def layout(self) -> Layout:
        """How a plan is cut into steps; known once packing is settled."""
        if self._layout is None:
            pack = None
            if self.packed_length is not None:
                pack = packer(self._run_samples().planned.dataset, self.packed_length)
            takes_counts = self.trainer.model_accepts_loss_kwargs
            weighted = self.recipe.weights == "loss"
            self._layout = Layout.of(self.args, pack=pack, takes_counts=takes_counts, weighted=weighted)
        return self._layout

    def context(self) -> RunContext:
        """What a decision may use now."""
        return context_of(
            self.trainer,
            self.recipe,
            self._run_samples(),
            layout=self.layout,
            record=self.record,
            folder=self.folder,
            shared=self.shared,
            say=self.say,
            save_recipe=self.save_recipe,
            time_training=self._seconds_per_sample,
        )

    def say(self, sentence: str) -> None:
        """Show the user a sentence, once over all ranks."""
        if self.args.process_index == 0:
            self.tell(sentence)

    def _run_samples(self) -> RunSamples:
        if self._samples is None:
            self._samples = samples_of(self.trainer)
        return self._samples

    def _seconds_per_sample(self, rows: NDArray[np.int64]) -> float:
        with self.metrics_kept():
            return time_forward_backward(
                self.trainer.model,
                self.trainer.loss_of,
                self._run_samples().train.batches(rows, self.layout.micro_batch),
                device=self.args.device,
            )

    # ---- before the first step ---------------------------------------------------------------------------

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folders that the run writes to, unless the caller does.

        The user's own files may lie there as well: a tokenizer, a README, a tracker's logs.

        Raises:
            RecipeError: they hold something under a name that would be written, or somebody writes there.
        """
        output = self.output
        with ExitStack() as stack:
            if self.owned is None:
                names = [*FILES.values(), "plan", recipe_file.NAME]
                self.owned = stack.enter_context(claimed(self.folder, "trainer", names, shared=True))
                stack.callback(setattr, self, "owned", None)
                if output.resolve() != self.folder.resolve():
                    stack.enter_context(claimed(output, "trainer", shared=True))
            on_first(lambda: checkpoints.check_ours(output))
            yield

    def open(self, resume: Path | None) -> None:
        """Start the record, new or cut back to the checkpoint that the run resumes from."""
        self.resumed_from = resume
        self.plan = self._layout = self._samples = None
        self.stop_requested = self.stopped = False
        self.saved_step = self._decided_at = -1
        self._state, self.recipe = on_first(
            lambda: opened(self.recipe, resume, self.output, self.folder, self.record)
        )
        state = self._state
        self.record.start(state["record"] if state else None)
        recipe_file.write(self.recipe, self.folder)
        if state:
            self.saved_step = state["step"]
            self.record.event("resume", state["step"], 0.0, checkpoint=str(resume))

    def tracked(self, resume: Path | None) -> AbstractContextManager[None]:
        """Let trackers see one run, however often it is resumed, while it trains."""
        step = self._state["step"] if resume and self._state else None
        callbacks = self.trainer.callback_handler.callbacks
        return one_run(callbacks, self.folder, self.record.run, resumed_at=step, say=self.say)

    def save_recipe(self, recipe: Recipe) -> None:
        """Follow a recipe into which measurements were filled, once it is written; a collective call."""
        if recipe != self.recipe:
            recipe_file.write(recipe, self.folder)
            self.recipe = recipe

    def prepare(self) -> DataLoader[Any]:
        """Make or load the plan, and return the ledger that the Trainer counts its steps by."""
        evaluation_data = self.trainer.eval_dataset
        held_out = evaluation_data.values() if isinstance(evaluation_data, dict) else [evaluation_data]
        planned = self._run_samples().planned
        for dataset in (planned.dataset, *held_out):
            check_tokens(self.trainer.model, dataset, self.trainer.data_collator)
        self._settle_packing()
        if self.plan is None:
            self.plan = self._resumed_plan() if self.resumed_from else self.planner.first_plan(self.context())
            self._save_plan(self.plan)
        batches = self.layout.cut(self.plan)
        self._feeder = Feeder(batches, planned.inputs, planned.collate, **loader_settings(self.args))
        columns = getattr(planned.dataset, "column_names", None) or ()
        self._lengths = token_lengths(planned.dataset) if "input_ids" in columns else None
        return ledger(batches)

    def _settle_packing(self) -> None:
        """Refuse packing, or do without it, if it would not give each sample what it has alone; a collective
        call."""
        samples, packs = self._run_samples().train, self.packed_length is not None
        reason = unpacked(self.trainer, samples, packs=packs, unpack=self.unpack_if_needed)
        if reason is None:
            return
        self.packed_length = self._layout = None
        self.say(f"Trained unpacked: {reason}.")
        if self.resumed_from is None:
            self.record.event("unpacked", self.step, 0.0, why=reason)

    def decide(self) -> None:
        """Let the planner change what is ahead, if a decision is due; what was served stays, and nothing was
        fetched beyond."""
        assert self._feeder is not None and self.plan is not None
        if self.step == self._decided_at or self._over():
            return
        # Asked before every step, so of the batches at hand: cutting a plan takes time with its length.
        if not self.planner.due(self.step, self.layout.schedule_of(self.schedule)):
            return
        self._decided_at = self.step
        self.flush()
        self.plan = self.planner.again(self.context(), self.plan, self.step)
        self._feeder.follow(self.layout.cut(self.plan))
        with self.record.uncharged():
            self._save_plan(self.plan)

    def _save_plan(self, plan: Plan) -> None:
        check_same(plan.digest, "The plans")
        on_first(lambda: plan.save(self.folder / "plan" / checkpoints.PLAN))

    def _resumed_plan(self) -> Plan:
        source, state = self.resumed_from, self._state
        assert source is not None and state is not None
        plan, arrays = on_first(lambda: checkpoints.read_decided(source))
        check_plan(plan, state, source, self.layout, pool=len(self._run_samples().planned))
        context = self.context()
        self.planner.load_state_dict(arrays, context)
        self.planner.check_resumed(context, plan, state["step"])
        return plan

    def decisions(self) -> dict[str, Any]:
        """What a resumed run must have in common with the run that it resumes."""
        return decisive_sections(self.recipe)

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer exists and a checkpoint, if any, is loaded: put the layer switch around them."""
        self._begin_switch(model, optimizer)
        self.record.start_clock()

    def _begin_switch(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        policy = self.recipe.layers.policy
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if policy is None:
            return
        self.switch = layer_switch(model, policy, optimizer, self.trainer, seed=self.recipe.seed)
        self.trainable = 0
        if self._state is not None:
            self.switch.load_state_dict(self._state["layers"])
            self.trainable = self.switch.trainable

    # ---- each step ---------------------------------------------------------------------------------------

    def _over(self) -> bool:
        """Whether a resumed run has made its last step."""
        return self.step >= self.trainer.state.max_steps or self.trainer.control.should_training_stop

    def batches(self) -> list[dict[str, Any]]:
        """The micro-batches of the step about to begin; none when a resumed run has made its last step."""
        assert self._feeder is not None
        return [] if self._over() else self._feeder.step(self.step)

    def ahead(self, number: int) -> list[Any]:
        """The micro-batches of the step `number` steps from now, without using them."""
        assert self._feeder is not None
        return self._feeder.step(number % self._feeder.batches.steps)

    def rewind(self) -> None:
        """Serve the step about to begin next, after others were measured ahead of it."""
        assert self._feeder is not None
        self._feeder.close()

    def draw_layers(self) -> None:
        """Draw the layers that the step about to begin updates, if it is time.

        Before anything else is decided: what looks a step ahead must move the layers that the step will.
        """
        if self.switch is None or self._over():
            return
        if self.switch.probing:
            with self.metrics_kept():
                steps, seconds = run_probe(self.switch, self.trainer, self.ahead, self._loss_scale)
            self.rewind()
            self.record.event("probe", self.step, seconds, steps=steps)
        draw = self.switch.before_step()
        if draw is not None:
            details = draw.as_dict()
            trainable = self.switch.trainable
            self.trainable = max(self.trainable, trainable)
            self.record.event("layers", self.step, details.pop("seconds"), **details, trainable=trainable)

    def metrics_kept(self) -> AbstractContextManager[None]:
        """A trainer that keeps metrics of its own (TRL's) must not count what trains nothing."""
        if not hasattr(self.trainer, "_metrics"):
            return nullcontext()
        from gradwise.integrations.trl import metrics_kept

        return metrics_kept(self.trainer)

    def before_step(self) -> None:
        """The step's batches are there; its forward/backward runs come next."""
        self._loss = None

    def after_micro_batch(self, loss: Tensor) -> None:
        """One micro-batch is done; `loss` is its share of the step's loss."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def after_backward(self) -> None:
        """The step's gradient is complete and not yet clipped."""
        if self.switch is not None:
            self.switch.after_backward(self._loss_scale() if self.switch.policy.measures else 1.0)

    def before_update(self) -> None:
        """Note the learning rate that the update uses; the scheduler moves before anyone else is asked."""
        scheduler = self.trainer.lr_scheduler
        self._learning_rate = scheduler.get_last_lr()[0] if scheduler is not None else None

    def count_tokens(self, tokens: Any) -> None:
        """Note the step's label tokens over all ranks, if the Trainer counts them."""
        if tokens is not None and self.args.world_size > 1 and not self.args.average_tokens_across_devices:
            tokens = torch.as_tensor(tokens, device=self.args.device).clone()  # this rank's alone
            dist.all_reduce(tokens)
        self._tokens = tokens.long() if isinstance(tokens, Tensor) else tokens

    def input_tokens(self, step: int) -> int | None:
        """Tokens that pass through the model in `step`, padding left out, over all ranks; None where the
        data do not tell lengths without being read."""
        if self._lengths is None:
            return None
        return int(self._lengths[self.schedule.samples(step)].sum())

    def after_step(self, epoch: float, grad_norm: Any) -> None:
        """Note the step that was just done; `step` already counts it."""
        assert self._loss is not None
        values = {
            "learning_rate": self._learning_rate,
            "grad_norm": grad_norm,
            "input_tokens": self.input_tokens(self.step - 1),
            "label_tokens": self._tokens,
        }
        metrics = {name: value for name, value in values.items() if value is not None}
        self.record.step(self._loss, step=self.step, epoch=round(epoch, 6), **metrics)
        if self._at_logging_step():
            self.flush()

    def flush(self) -> None:
        """Write the steps noted so far; a value that is not finite stops the run and names the samples.

        With loss scaling a gradient that overflows is ordinary: the scaler skips that update.
        """
        try:
            self.record.flush(check_gradient=getattr(self.trainer.accelerator, "scaler", None) is None)
        except NonFiniteError as error:
            last = checkpoints.last_whole(self.output, contents=False)[0]
            raise GradwiseError(
                f"The training {error.quantity} is {error.value} at step {error.step} "
                f"({self.samples_named(error.step - 1)}). Lower the learning rate or check them. Last whole "
                f"checkpoint: {last or 'none'}."
            ) from None

    def samples_named(self, step: int) -> str:
        """The samples of a step, as messages name them."""
        return f"samples {few(list(map(str, self.schedule.samples(step))), 8)} of the data"

    def after_evaluation(self, metrics: dict[str, Any]) -> None:
        """Note the results of an evaluation, without what was timed in it."""
        self.flush()
        timings = ("_runtime", "_per_second")
        self.record.evaluation(
            self.step,
            {record_name(name): value for name, value in metrics.items() if not name.endswith(timings)},
        )

    def ends_epoch(self) -> bool:
        """Whether the step just done was the last of its epoch or of the run."""
        return self.step % self.schedule.steps_per_epoch == 0 or self.step >= self.trainer.state.max_steps

    def should_stop(self) -> bool:
        """Whether a stop was asked for; with several ranks they agree on it at logging steps only."""
        if self.args.world_size == 1:
            return self.stop_requested
        if not self._at_logging_step():
            return False
        votes = torch.tensor(float(self.stop_requested), device=self.args.device)
        dist.all_reduce(votes)
        return bool(votes.item())

    def save(self, write: Callable[[], None], limit: int | None) -> None:
        """Save a checkpoint of the run as it stands, unless this step was saved already.

        The Trainer's files come first, then gradwise's, then the marker that makes the checkpoint count.
        Neither writing nor hashing is charged to the run.

        Args:
            write: the Trainer's own saving, which must not delete older checkpoints.
            limit: checkpoints of this run to keep, the newest and the best among them.

        Raises:
            GradwiseError: the loss or a gradient was not finite since the last checkpoint; weights that may
                be spoilt are not saved.
            StorageError: the checkpoint cannot be written; earlier ones are left as they were.
        """
        if self.saved_step == self.step:
            return
        self.flush()
        with self.record.uncharged(CHECKPOINT):
            target = self.output / f"checkpoint-{self.step}"
            # The first rank owns the folder: it begins and ends it, the others come in between.
            on_first(lambda: checkpoints.begin(target))
            write_or_explain(target, write, target.parent)
            wait_for_all()
            on_first(lambda: self._complete(target, limit))
            self.saved_step = self.step

    @property
    def position(self) -> Any:
        """Where the data stand after the steps done, for a checkpoint."""
        return self.schedule.used(self.step)

    def _complete(self, target: Path, limit: int | None) -> None:
        plan = self.plan
        state = {
            "run": self.record.run,
            "step": self.step,
            "decisions": self.decisions(),
            "plan": None if plan is None else plan.digest,
            "position": self.position,
            "layers": self.switch.state_dict() if self.switch else None,
            "record": self.record.state(),
        }
        if plan is not None:
            plan.save(target / checkpoints.PLAN)
        checkpoints.write_arrays(target, self.planner.state_dict())
        checkpoints.finish(target, state)
        checkpoints.rotate(target, limit, self.trainer.state.best_model_checkpoint)

    def close(self) -> None:
        """Give the model back as it was found and let go of the workers; the run is charged no more."""
        self.record.stop_clock()
        if self.switch is not None:
            self.switch.restore()
            self.switch = None
        if self._feeder is not None:
            self._feeder.close()

    def _at_logging_step(self) -> bool:
        return self.step % max(1, self.trainer.state.logging_steps) == 0

    def _loss_scale(self) -> float | Tensor:
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        # Asked in a way that leaves the scale on its device.
        return scaler.scale(torch.ones((), device=self.args.device)) if scaler is not None else 1.0
