"""Which of several processes this is, before any of them has been set up."""

import os


def is_first() -> bool:
    """Whether this is the first rank, or the only process."""
    return int(os.environ.get("RANK", "0")) == 0


def rank_count() -> int:
    """Processes that torchrun started, or 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))
