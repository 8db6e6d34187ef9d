"""TRL's trainers keep running metrics of their own; passes that are not training must leave them alone."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def metrics_kept(trainer: object) -> Iterator[None]:
    """Give TRL's running metrics and token count back as they were found."""
    names = [name for name in ("_metrics", "_total_train_tokens") if hasattr(trainer, name)]
    kept = {name: copy.deepcopy(getattr(trainer, name)) for name in names}
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)
