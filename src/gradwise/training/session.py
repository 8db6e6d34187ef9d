"""One training run seen from gradwise's side: its plan, its feeder, its layer switch, its record, its
checkpoints.

The trainer subclass in `gradwise.training.trainer` only forwards the Trainer's own calls to a session, in
this order: `prepare` (plan and loader), `begin` (optimizer exists, checkpoint loaded), then for each step
`batches`, `before_step`, `after_backward`, `before_update`, `after_step`; `save` for a checkpoint; `close` at
the end.
"""

import math
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradwise.data.packing import pack
from gradwise.errors import CheckpointError, GradwiseError, RecipeError
from gradwise.methods.layer_policy import LayerPolicy
from gradwise.recipe import Recipe
from gradwise.training import checkpoint as checkpoints
from gradwise.training.batches import Batches
from gradwise.training.feeder import Feeder
from gradwise.training.layers import LayerSwitch
from gradwise.training.plan import Plan
from gradwise.training.planning import make_plan
from gradwise.training.pool import pool_signals
from gradwise.training.record import NonFiniteLossError, Record


class Session:
    """State of one run beside the Trainer's own.

    Args:
        trainer: the `TrainerMixin` it belongs to.
        recipe: what to select, how to order, which layers to update, the seed.
        plan: a plan to follow instead of making one from the recipe.
        folder: where `metrics.jsonl`, `events.jsonl` and `plan/` go.
        packed_length: pack consecutive samples of the plan into rows of at most so many tokens.
    """

    def __init__(
        self,
        trainer: Any,
        recipe: Recipe,
        *,
        plan: Plan | None = None,
        folder: Path,
        packed_length: int | None = None,
    ) -> None:
        self.trainer = trainer
        self.recipe = recipe
        self.folder = folder
        self.packed_length = packed_length
        self.given_plan = plan
        self.plan: Plan | None = None
        self.record = Record(folder, writes=trainer.is_world_process_zero())
        self.resumed_from: Path | None = None
        self.stop_requested = False
        self.switch: LayerSwitch | None = None
        self.trainable = 0
        self._feeder: Feeder | None = None
        self._loss: Tensor | None = None
        self._tokens: Any = None
        self._learning_rate: Any = None

    @property
    def args(self) -> Any:
        """The trainer's TrainingArguments."""
        return self.trainer.args

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.trainer.state.global_step

    @property
    def steps_batches(self) -> Batches:
        """How the plan is cut into steps."""
        assert self._feeder is not None
        return self._feeder.batches

    # ---- before the first step ---------------------------------------------------------------------------

    def prepare(self) -> DataLoader[Any]:
        """Open the record, make or load the plan, and return the ledger that the Trainer counts its steps
        by."""
        state = checkpoints.read_state(self.resumed_from) if self.resumed_from else None
        if self.args.should_save:
            checkpoints.discard_torn(Path(self.args.output_dir))
        self.record.start(state["record"] if state else None)
        if state:
            self.record.event("resume", state["step"], 0.0, checkpoint=str(self.resumed_from))
        self.plan = self._resumed_plan(state) if state else self._new_plan()
        if self.trainer.is_world_process_zero():
            self.plan.save(self.folder / "plan" / checkpoints.PLAN)
        batches = self._cut(self.plan)
        self._check_stand_ins(batches)
        samples, collate = self.trainer._training_samples()
        self._feeder = Feeder(batches, samples, collate, **self._loader_settings())
        return _ledger(batches)

    def _new_plan(self) -> Plan:
        if self.given_plan is not None:
            return self.given_plan
        start = time.perf_counter()
        needs = self.recipe.select.needs | self.recipe.order.needs
        signals = pool_signals(self.trainer, needs, self.recipe.signals.batch_tokens)
        if needs:
            self.record.event(
                "signals", 0, time.perf_counter() - start, quantities=sorted(needs), samples=len(signals)
            )
        start = time.perf_counter()
        selection = self.recipe.select.select(signals, seed=self.recipe.seed)
        decide = partial(make_plan, selection, self.recipe.order, signals, seed=self.recipe.seed)
        plan = decide(epochs=self._epochs(decide(epochs=1)))
        self.record.event(
            "plan",
            0,
            time.perf_counter() - start,
            select=self.recipe.select.method,
            order=self.recipe.order.method,
            pool=plan.pool,
            selected=len(np.unique(selection.indices)),
            length=len(plan),
            digest=plan.digest,
        )
        return plan

    def _epochs(self, one_pass: Plan) -> int:
        if self.args.max_steps <= 0:
            return math.ceil(self.args.num_train_epochs)
        return math.ceil(self.args.max_steps / self._cut(one_pass).steps_per_epoch)

    def _resumed_plan(self, state: dict[str, Any]) -> Plan:
        assert self.resumed_from is not None
        plan = Plan.load(self.resumed_from / checkpoints.PLAN)
        if plan.digest != state["plan"]:
            raise CheckpointError(
                f"The plan in {self.resumed_from} is not the one the checkpoint was taken with."
            )
        pool = len(self.trainer.train_dataset)
        if plan.pool != pool:
            raise CheckpointError(
                f"The checkpoint {self.resumed_from} was trained on {plan.pool} samples, "
                f"the data now have {pool}; give the same data, or start a new run."
            )
        return plan

    def _cut(self, plan: Plan) -> Batches:
        args = self.args
        micro_batch = self.trainer._train_batch_size
        return Batches(
            plan,
            batch_size=micro_batch * args.gradient_accumulation_steps * args.world_size,
            micro_batch=micro_batch,
            rank=args.process_index,
            ranks=args.world_size,
            drop_last=args.dataloader_drop_last,
            pack=self._packer(),
        )

    def _packer(self) -> Callable[[Any], Any] | None:
        if self.packed_length is None:
            return None
        dataset: Any = self.trainer.train_dataset
        lengths = np.array([len(ids) for ids in dataset["input_ids"]])
        longest = self.packed_length
        return lambda indices: pack(lengths[indices], longest)

    def _check_stand_ins(self, batches: Batches) -> None:
        averaged = self.args.average_tokens_across_devices and self.trainer.model_accepts_loss_kwargs
        if batches.has_stand_ins and not averaged:
            raise RecipeError(
                "The last step of an epoch has fewer samples than all ranks need, and this model or "
                "average_tokens_across_devices: false does not weight the loss by tokens over ranks; "
                "set dataloader_drop_last: true."
            )

    def _loader_settings(self) -> dict[str, Any]:
        args = self.args
        workers = {
            "prefetch_factor": args.dataloader_prefetch_factor,
            "multiprocessing_context": getattr(args, "dataloader_multiprocessing_context", None),
        }
        return {
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            **(workers if args.dataloader_num_workers else {}),
        }

    def begin(self, model: nn.Module, optimizer: Any) -> None:
        """The optimizer exists and a checkpoint, if any, is loaded: put the layer switch around them."""
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        policy = self.recipe.layers
        if not isinstance(policy, LayerPolicy):
            return
        ranks = self.args.world_size
        self.switch = LayerSwitch(
            model,
            policy,
            getattr(optimizer, "optimizer", optimizer),
            seed=self.recipe.seed,
            micro_batches=self.args.gradient_accumulation_steps,
            average_ranks=ranks > 1,
        )
        if ranks > 1:
            # What DistributedDataParallel would have done on wrapping.
            with torch.no_grad():
                for tensor in (*model.parameters(), *model.buffers()):
                    dist.broadcast(tensor, src=0)
        self.trainable = 0
        if self.resumed_from:
            self.switch.load_state_dict(checkpoints.read_state(self.resumed_from)["layers"])
            self.trainable = self.switch.trainable

    # ---- each step ---------------------------------------------------------------------------------------

    def batches(self) -> list[dict[str, Any]]:
        """The micro-batches of the step about to begin."""
        assert self._feeder is not None
        if self.switch is not None and self.switch.probing:
            self._run_probe()
        return self._feeder.step(self.step)

    def _run_probe(self) -> None:
        """Measure all layers on the first steps' samples, without an update and without touching random
        state."""
        assert self._feeder is not None and self.switch is not None
        start, done = time.perf_counter(), 0
        cuda = list(range(torch.cuda.device_count())) if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(cuda), self._metrics_kept():
            while self.switch.probing:
                parts = self._feeder.step(done % self.steps_batches.steps)
                self.switch.before_step()
                self.trainer._probe_passes(parts)
                self.switch.after_backward(self._loss_scale())
                done += 1
        self._feeder.close()
        self.record.event("probe", self.step, time.perf_counter() - start, steps=done)

    def _metrics_kept(self) -> Any:
        """A trainer that keeps metrics of its own (TRL's) must not count the probe's passes."""
        if not hasattr(self.trainer, "_metrics"):
            return nullcontext()
        from gradwise.integrations.trl import metrics_kept

        return metrics_kept(self.trainer)

    def before_step(self) -> None:
        """Draw the layers, if it is time."""
        self._loss = None
        if self.switch is None:
            return
        draw = self.switch.before_step()
        if draw is not None:
            told = draw.as_dict()
            trainable = self.switch.trainable
            self.trainable = max(self.trainable, trainable)
            self.record.event("layers", self.step, told.pop("seconds"), **told, trainable=trainable)

    def after_pass(self, loss: Tensor) -> None:
        """One micro-batch is done; `loss` is its share of the step's loss."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def after_backward(self) -> None:
        """The step's gradient is complete and not yet clipped."""
        if self.switch is not None:
            self.switch.after_backward(self._loss_scale())

    def before_update(self) -> None:
        """Note the learning rate that the update uses; the scheduler moves before anyone else is asked."""
        scheduler = self.trainer.lr_scheduler
        self._learning_rate = scheduler.get_last_lr()[0] if scheduler is not None else None

    def count_tokens(self, tokens: Any) -> None:
        """Label tokens of the step over all ranks, where the Trainer counts them."""
        self._tokens = tokens.long() if isinstance(tokens, Tensor) else tokens

    def after_step(self, epoch: float, grad_norm: Any) -> None:
        """Note the step that was just done; `step` already counts it."""
        assert self._loss is not None
        known = {"learning_rate": self._learning_rate, "grad_norm": grad_norm, "label_tokens": self._tokens}
        self.record.step(
            self._loss,
            step=self.step,
            epoch=round(epoch, 6),
            **{name: value for name, value in known.items() if value is not None},
        )
        if self._at_logging_step():
            self.flush()

    def flush(self) -> None:
        """Write the steps noted so far; a loss that is not finite stops the run and names the samples."""
        try:
            self.record.flush()
        except NonFiniteLossError as error:
            samples = self.steps_batches.samples(error.step - 1)
            last = checkpoints.last_whole(Path(self.args.output_dir))[0]
            raise GradwiseError(
                f"The training loss is {error.loss} at step {error.step} "
                f"(samples {_listed(samples)} of the data). Lower the learning rate or look at them. "
                f"Last whole checkpoint: {last or 'none'}."
            ) from None

    def ends_epoch(self) -> bool:
        """Whether the step just done was the last of its epoch."""
        return self.step % self.steps_batches.steps_per_epoch == 0

    def should_stop(self) -> bool:
        """Whether a stop was asked for; with several ranks they agree on it at logging steps only."""
        if self.args.world_size == 1:
            return self.stop_requested
        if not self._at_logging_step():
            return False
        asked = torch.tensor(float(self.stop_requested), device=self.args.device)
        dist.all_reduce(asked)
        return bool(asked.item())

    def _at_logging_step(self) -> bool:
        return self.step % max(1, self.trainer.state.logging_steps) == 0

    def _loss_scale(self) -> float:
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        return float(scaler.get_scale()) if scaler is not None else 1.0

    # ---- checkpoints -------------------------------------------------------------------------------------

    def save(self, write: Callable[[], None]) -> None:
        """Write a checkpoint: the Trainer's files by `write`, then ours, then the marker that makes it
        count."""
        args = self.args
        self.flush()
        state = {
            "step": self.step,
            "plan": self.plan.digest if self.plan else None,
            "position": self.steps_batches.used(self.step),
            "layers": self.switch.state_dict() if self.switch else None,
            "record": self.record.state(),
        }
        target = Path(args.output_dir) / f"checkpoint-{self.step}"
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            if args.should_save:
                checkpoints.begin(target)
            self.trainer.accelerator.wait_for_everyone()
            write()
            self.trainer.accelerator.wait_for_everyone()
            if args.should_save:
                assert self.plan is not None
                self.plan.save(target / checkpoints.PLAN)
                checkpoints.finish(target, state)
                checkpoints.rotate(target.parent, limit, self.trainer.state.best_model_checkpoint)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise _not_written(target, error) from error
        finally:
            args.save_total_limit = limit
        self.trainer.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Give the model back as it was found and let go of the workers."""
        if self.switch is not None:
            self.switch.restore()
            self.switch = None
        if self._feeder is not None:
            self._feeder.close()


def _ledger(batches: Batches) -> DataLoader[Any]:
    """What the Trainer counts an epoch's passes and samples by. It is never drawn from: `Session.batches`
    serves."""
    samples: Any = range(sum(len(segment) for segment in batches.plan.of_epoch(0)))
    return DataLoader(samples, batch_sampler=[[0]] * batches.micro_batches_per_epoch)


def _listed(samples: Any, most: int = 8) -> str:
    names = [str(sample) for sample in samples[:most]]
    return ", ".join(names) + (", ..." if len(samples) > most else "")


def _not_written(target: Path, error: Exception) -> CheckpointError:
    free = shutil.disk_usage(target.parent).free / 2**20
    last = checkpoints.last_whole(target.parent)[0]
    return CheckpointError(
        f"The checkpoint {target} could not be written ({' '.join(str(error).split())[:200]}; "
        f"{free:,.0f} MiB free). "
        f"Make room and run the same command again; it goes on from {last or 'the beginning'}."
    )
