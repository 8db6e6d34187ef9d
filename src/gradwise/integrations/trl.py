"""What TRL's trainers have of their own: running metrics, and samplers that repeat prompts."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from gradwise.training.sharding import TrainerParts
from gradwise.training.trainer_loader import RepeatedPrompts

KEPT = (
    "_metrics", "_total_train_tokens", "_logs", "_step", "_buffered_inputs", "_current_train_step_time",
)  # fmt: skip
"""What a forward and backward run changes in a trainer; the last four are those of trainers that generate."""


@contextmanager
def metrics_kept(trainer: TrainerParts) -> Iterator[None]:
    """Give TRL's running metrics and counters back as they were found."""
    names = [name for name in KEPT if hasattr(trainer, name)]
    metrics = {name: copy.deepcopy(getattr(trainer, name)) for name in names}
    tokens = trainer.state.num_input_tokens_seen
    try:
        yield
    finally:
        trainer.state.num_input_tokens_seen = tokens
        for name, value in metrics.items():
            setattr(trainer, name, value)


def repeated_prompts(sampler: object) -> RepeatedPrompts | None:
    """What takes the place of a sampler that repeats prompts for several answers (GRPO's, RLOO's); None for
    any other sampler."""
    values = [getattr(sampler, name, None) for name in ("batch_size", "mini_repeat_count", "repeat_count")]
    numbers = [value for value in values if isinstance(value, int)]
    return RepeatedPrompts(*numbers) if len(numbers) == len(values) else None
