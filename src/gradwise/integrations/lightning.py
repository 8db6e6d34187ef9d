"""A Lightning callback: a layer policy and a plan in a `lightning.Trainer`, saved and resumed with it.

callback = GradwiseCallback(Grass(active=2), plan=plan)
loader = DataLoader(dataset, batch_size=8, sampler=callback.sampler)
lightning.Trainer(max_epochs=plan.epochs, callbacks=[callback]).fit(module, loader)
"""

import math
from collections.abc import Iterator
from typing import Any

import lightning
from torch import Tensor
from torch.optim import Optimizer

from gradwise.errors import CheckpointError, PlanError, RecipeError
from gradwise.methods.layer_policy import LayerPolicy
from gradwise.training.layers import LayerSwitch
from gradwise.training.plan import Plan
from gradwise.training.sampler import PlanSampler


class EpochSampler(PlanSampler):
    """Serves an epoch of a plan in each iteration, from what training has used: Lightning makes and abandons
    iterators, and a loader's workers draw ahead."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, by_epoch=True)
        self.used = self.position

    def __iter__(self) -> Iterator[int]:
        self.position = self.used
        return super().__iter__()

    def use(self, samples: int, *, last: bool) -> None:
        """Count a batch that was trained on, the epoch's last one or another."""
        start, end = self.bounds(self.used)
        self.used = end if last else min(end, max(start, self.used % int(self.plan.starts[-1])) + samples)

    def state_dict(self, used: int | None = None) -> dict[str, Any]:
        return super().state_dict(self.used if used is None else used)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.used = self.position


class GradwiseCallback(lightning.Callback):
    """Drives a layer policy around the module's optimizer and keeps the place in a plan.

    Every checkpoint of the Trainer holds both, so that a resumed run trains on the same samples and layers.

    Args:
        layers: which layers are updated; None to leave them all trainable.
        plan: what is trained on; None to leave that to the loader. Give `callback.sampler` to the loader.
        seed: decides the draws of layers.
    """

    def __init__(self, layers: LayerPolicy | None = None, *, plan: Plan | None = None, seed: int = 0) -> None:
        self.layers, self.seed = layers, seed
        self.sampler = None if plan is None else EpochSampler(plan)
        self.switch: LayerSwitch | None = None
        self._batch_size = 0
        self._resumed: dict[str, Any] | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Refuse what cannot be honoured, before anything is trained."""
        if trainer.world_size > 1:
            raise RecipeError(
                f"gradwise's Lightning callback runs on one device; found {trainer.world_size}. Use "
                "gradwise.Trainer for several."
            )
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise RecipeError("precision='16-mixed' scales the loss; use 'bf16-mixed' or '32-true'.")
        if not pl_module.automatic_optimization:
            raise RecipeError("gradwise's Lightning callback needs automatic optimization of the module.")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Put the layer switch around the optimizer, whose state is loaded by now."""
        if len(trainer.optimizers) != 1:
            raise RecipeError(f"One optimizer is needed; the module has {len(trainer.optimizers)}.")
        if self.sampler is not None:
            self._batch_size = _check_loader(trainer, self.sampler)
        if self.layers is None:
            return
        # Infinite where only max_time ends the run.
        estimate = trainer.estimated_stepping_batches
        steps = int(estimate) if 0 < estimate < math.inf else None
        self.switch = LayerSwitch(pl_module, self.layers, trainer.optimizers[0], seed=self.seed, steps=steps)
        if self._resumed is not None:
            self.switch.load_state_dict(self._resumed["layers"])
            # A second fit of this callback that resumes nothing starts its layers from the beginning.
            self._resumed = None

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Draw layers before the first forward pass of a step, if it is time."""
        if self.switch is not None and batch_idx % trainer.accumulate_grad_batches == 0:
            self.switch.before_step()

    def on_before_optimizer_step(
        self,
        trainer: lightning.Trainer,  # noqa: ARG002
        pl_module: lightning.LightningModule,  # noqa: ARG002
        optimizer: Optimizer,  # noqa: ARG002
    ) -> None:
        """The step's gradient is complete and not yet clipped."""
        if self.switch is not None:
            self.switch.after_backward()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,  # noqa: ARG002
        outputs: Tensor | dict[str, Any] | None,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Count what was used: loader workers draw ahead of it."""
        if self.sampler is not None:
            self.sampler.use(self._batch_size, last=trainer.is_last_batch)

    def on_train_end(self, *_: object) -> None:
        """Make trainable again what was."""
        if self.switch is not None:
            self.switch.restore()

    def on_exception(self, *_: object) -> None:
        """As at the end."""
        self.on_train_end()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "layers": None if self.switch is None else self.switch.state_dict(),
            "sampler": None if self.sampler is None else self.sampler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume; the sampler now, before the loader draws, and the layers once the optimizer is there."""
        for name, present in (("layers", self.layers), ("sampler", self.sampler)):
            if (state_dict[name] is None) != (present is None):
                raise CheckpointError(f"The checkpoint and this callback do not agree on having {name}.")
        self._resumed = state_dict
        if self.sampler is not None:
            self.sampler.load_state_dict(state_dict["sampler"])


def _check_loader(trainer: lightning.Trainer, sampler: EpochSampler) -> int:
    """The loader's batch size; raises PlanError where it would not serve the plan."""
    loader: Any = trainer.train_dataloader
    if getattr(loader, "sampler", None) is not sampler or loader.batch_size is None:
        raise PlanError("The training loader must have a batch_size and the callback's sampler.")
    lengths = {sum(map(len, sampler.plan.of_epoch(epoch))) for epoch in range(sampler.plan.epochs)}
    if len(lengths) > 1 and getattr(trainer, "reload_dataloaders_every_n_epochs", 0) != 1:
        raise PlanError(
            f"The plan's epochs have {min(lengths)} to {max(lengths)} samples, and Lightning asks for "
            "the length once; give the Trainer reload_dataloaders_every_n_epochs=1."
        )
    return int(loader.batch_size)
