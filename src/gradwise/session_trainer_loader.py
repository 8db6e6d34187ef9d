"""A run whose samples come from the Trainer's own loader: a data set that cannot be indexed, or the prompts
of a trainer that generates.

A stream is trained on as it comes, with a layer policy. Prompts have positions: a plan says which of them are
trained on and in which order, and the trainer's own loader repeats them for its generations. Neither
selection nor order are decided again while such a run trains.
"""

import math
from typing import Any

from torch.utils.data import DataLoader

from gradwise.data import is_indexable
from gradwise.errors import CheckpointError, RecipeError
from gradwise.integrations.trl import repeated_prompts
from gradwise.planning.epochs import continued
from gradwise.ranks import on_first
from gradwise.session import Session
from gradwise.training import checkpoint as checkpoints
from gradwise.training.layout import Layout
from gradwise.training.plan import Plan
from gradwise.training.trainer_loader import Position, RepeatedPrompts, TrainerLoader


class TrainerLoaderSession(Session):
    """State of such a run; arguments as those of `Session`."""

    _loader: TrainerLoader | None = None
    prompts: RepeatedPrompts | None = None
    """Serves the plan's prompts in the trainer's loader; None for a stream."""

    @property
    def layout(self) -> Layout:
        """How a plan of prompts is cut into generations, each of which is a step of the plan."""
        prompts, args = self.prompts, self.args
        assert prompts is not None
        generations = math.ceil(max(0, args.max_steps) * args.gradient_accumulation_steps / prompts.repeats)
        return Layout(
            micro_batch=prompts.chunk,
            drop_last=True,
            max_steps=generations,
            epochs=float(args.num_train_epochs),
        )

    def prepare(self) -> DataLoader[Any]:
        """Make or load the plan, if there are positions to plan, and open the trainer's loader."""
        trainer = self.trainer
        if is_indexable(trainer.train_dataset):
            self.prompts = repeated_prompts(trainer.underlying_sampler())
        # A trainer that generates passes through the model too many times to follow each tensor.
        self.follows_memory = not trainer.serves_itself
        state = self._state
        if self.prompts is not None and self.plan is None:
            self.plan = self._resumed_prompts() if state else self._planned_prompts()
            self._save_plan(self.plan)
        elif state and state["plan"] is not None:
            raise CheckpointError(
                f"The checkpoint {self.resumed_from} follows a plan, and the training data now are a stream; "
                "give the same data."
            )
        if self.prompts is None:
            self.say(
                "Samples are trained on as the trainer's loader brings them: nothing is selected or ordered."
            )
        self._begin_epoch(0)
        self._loader = TrainerLoader(
            trainer.underlying_loader(),
            self.args.gradient_accumulation_steps,
            begin=self._begin_epoch,
            start=Position(*state["position"]) if state else Position(),
        )
        length = self._loader.length
        if length == 0:
            raise RecipeError("The training data are too few for one batch; lower the batch size.")
        counted = length or self.args.max_steps * self.args.gradient_accumulation_steps
        # The Trainer counts its steps by this, and never draws from it.
        return DataLoader([0] * counted, batch_size=1)  # type: ignore[arg-type]

    def _planned_prompts(self) -> Plan:
        assert self.prompts is not None
        prompts = len(self.trainer.train_dataset)
        if prompts < self.prompts.chunk:
            raise RecipeError(
                f"A generation takes {self.prompts.chunk} different prompts (generation_batch_size over "
                f"num_generations), and the data have {prompts}; lower the batch size."
            )
        return self.planner.first_plan(self.context())

    def _resumed_prompts(self) -> Plan:
        source, state = self.resumed_from, self._state
        assert source is not None and state is not None
        if state["plan"] is None:
            raise CheckpointError(f"The checkpoint {source} was taken on a stream; give the same data.")
        plan = on_first(lambda: checkpoints.read_decided(source))[0]
        pool = len(self.trainer.train_dataset)
        if plan.digest != state["plan"] or plan.pool != pool:
            raise CheckpointError(
                f"The checkpoint {source} was taken with another plan or other data ({plan.pool} prompts, "
                f"now {pool}); give the same data, or start a new run."
            )
        return plan

    def _begin_epoch(self, epoch: int) -> None:
        """Bring the prompts of an epoch into the trainer's loader."""
        if self.plan is None or self.prompts is None:
            return
        while epoch >= self.plan.epochs and self.plan.until is not None:
            self.plan = continued(self.plan)
            self._save_plan(self.plan)
        segments = self.plan.of_epoch(max(epoch, self.plan.first_epoch))
        self.prompts.order = [int(index) for segment in segments for index in segment.indices]

    # ---- each step ---------------------------------------------------------------------------------------

    def decide(self) -> None:
        """Nothing is decided again."""

    def batches(self) -> list[Any]:
        """The micro-batches of the step about to begin; none when a resumed run has made its last step."""
        assert self._loader is not None
        return [] if self._over() else self._loader.step()

    def ahead(self, number: int) -> list[Any]:
        """The micro-batches of the step `number` steps from now, without using them."""
        assert self._loader is not None
        return self._loader.ahead(number)

    def rewind(self) -> None:
        """What was fetched ahead is kept and served."""

    def input_tokens(self, step: int) -> int | None:  # noqa: ARG002
        """Not known before the batches are read."""
        return None

    def samples_named(self, step: int) -> str:  # noqa: ARG002
        """A stream has no positions, and a step of prompts is made of generated answers."""
        return "its samples"

    @property
    def position(self) -> Position:
        """Where the data stand after the steps done, for a checkpoint."""
        assert self._loader is not None
        return self._loader.position

    def ends_epoch(self) -> bool:
        """Whether the step just done was the last of its epoch or of the run; a stream has one epoch."""
        assert self._loader is not None
        per_epoch = self._loader.steps_per_epoch
        ended = per_epoch is not None and self.step % per_epoch == 0
        return ended or self.step >= self.trainer.state.max_steps

    def close(self) -> None:
        """Give the model back as it was found and let go of the workers; the run is charged no more."""
        super().close()
        if self._loader is not None:
            self._loader.close()
