"""Measures a run's final model and writes `scores.json`, at the run's end or when its folder is next opened.

Its seconds are not the run's: they come after the event `finished`, and stand in `scores.json`.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gradwise.atomic import write_json
from gradwise.data import load
from gradwise.data.chat import with_template
from gradwise.data.parts import load_parts
from gradwise.data.pool import Pool
from gradwise.errors import GradwiseError, RecipeError, SignalError
from gradwise.evaluation import EvaluationError, Prepared, prepare, score
from gradwise.precision import autocast_of, autocasting
from gradwise.ranks import is_first
from gradwise.recipe import Recipe
from gradwise.run.directory import RunDirectory
from gradwise.run.model import Tell, load_saved_model, load_tokenizer
from gradwise.signals.model_state import check_measurable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def due(recipe: Recipe) -> bool:
    """Whether a run of the recipe is measured by anything."""
    data = recipe.data
    return bool(recipe.metrics) or (data is not None and bool(data.validation or data.target))


@dataclass(frozen=True)
class Scoring:
    """What a run will be measured by, checked before its first step."""

    recipe: Recipe
    tokenizer: "PreTrainedTokenizerBase"
    """The model's, with the chat template that the recipe gives."""
    prepared: Prepared
    held_out: Pool | None
    bars: bool
    tell: Tell

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        tokenizer: "PreTrainedTokenizerBase",
        held_out: Pool | None,
        *,
        bars: bool,
        tell: Tell,
    ) -> "Scoring":
        """Prepare a recipe's metrics; raises RecipeError or DataError for what could not be measured."""
        assert recipe.data is not None
        tokenizer = with_template(tokenizer, recipe.data.chat_template)
        prepared = prepare(recipe.metrics, tokenizer, seed=recipe.seed)
        return cls(recipe, tokenizer, prepared, held_out, bars, tell)

    def check_model(self, model: "PreTrainedModel") -> None:
        """Raise RecipeError where the model has no room for a task, or cannot be scored at all."""
        try:
            check_measurable(model)
        except SignalError as error:
            raise RecipeError(f"Without held-out data and metrics this could be trained: {error}") from None
        self.prepared.check_length(model, self.tokenizer, self.tell)

    def check_whole(self, sharded: bool) -> None:
        """Raise RecipeError for tasks and functions where the model will be in pieces."""
        if sharded and self.recipe.metrics:
            raise RecipeError(
                "metrics cannot be taken on a model that FSDP or DeepSpeed shards over processes; leave them "
                "out, and give them when the run is finished: the same command in one process then scores it."
            )

    def write(self, model: "PreTrainedModel", run: RunDirectory, *, first: bool) -> bool:
        """Measure the model and write `scores.json`; all ranks must call it.

        Returns:
            False where it was interrupted.

        Raises:
            GradwiseError: something could not be measured; says that the model is saved.
        """
        # Not the run's seconds: scoring comes after the event `finished`.
        start = time.perf_counter()
        try:
            device = next(model.parameters()).device
            # In the types of training, as the evaluations on the way were, so that both can be compared.
            with autocasting(device, autocast_of(self.recipe.train.arguments)):
                scores = score(
                    model,
                    self.tokenizer,
                    self.prepared,
                    self.held_out.dataset if self.held_out is not None else None,
                    batch_tokens=self.recipe.signals.batch_tokens,
                    seed=self.recipe.seed,
                    progress=self.bars,
                    tell=self.tell,
                )
        except KeyboardInterrupt:
            self.tell(
                f"Stopped while scoring; the model is saved in {run.model}. The same command scores it."
            )
            return False
        except (GradwiseError, RuntimeError, OSError, MemoryError) as error:  # no memory left, among others
            reason = " ".join(str(error).split()).rstrip(".")
            raise EvaluationError(
                f"{reason}. The model is saved in {run.model}; once this is mended, the same command only "
                "scores it."
            ) from error
        if first:
            values = {name: each.as_dict() for name, each in scores.items()}
            write_json(run.scores_file, {"scores": values, "seconds": time.perf_counter() - start})
        return True


def score_saved(recipe: Recipe, run: RunDirectory, device: torch.device, *, bars: bool, tell: Tell) -> bool:
    """Measure the model that a finished run saved; all ranks must call it. False where it was interrupted."""
    assert recipe.model is not None and recipe.data is not None
    tokenizer = load_tokenizer(recipe.model)
    held_out = _measuring(recipe, tokenizer, bars=bars)
    if held_out is not None:
        run.check_data(held_out.fingerprint, key="held_out_fingerprint")
    scoring = Scoring.of(recipe, tokenizer, held_out, bars=bars, tell=tell)
    model = load_saved_model(recipe.model, run.model, tell=tell).to(device)
    scoring.check_model(model)
    return scoring.write(model, run, first=is_first())


def _measuring(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", *, bars: bool) -> Pool | None:
    """The held-out samples of the run; all parts are read where samples had to be kept apart."""
    data = recipe.data
    assert data is not None
    if data.target is not None or recipe.goal is not None or data.target_share is not None:
        # With the data of the annealing phase: samples that occur there measured nothing in the run.
        parts = load_parts(data, tokenizer, goal=recipe.goal, annealing=recipe.annealing_data, progress=bars)
        return parts.validation
    return load(data, "validation", tokenizer, progress=bars) if data.validation is not None else None
