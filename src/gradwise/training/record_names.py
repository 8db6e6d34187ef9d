"""Names in the record of a run that its readers share; imports nothing, so that a report starts fast."""

NOT_DECIDING = ("finished", "resume", "memory")
"""Events whose seconds are not the cost of a decision."""

WEIGHTS, ENDS, GRADIENTS, STATE, ACTIVATIONS, BUFFERS = PARTS = (
    "weights",
    "embeddings and head",
    "gradients",
    "optimizer state",
    "activations",
    "temporary buffers",
)
"""Parts of a run's memory, in the order in which they are shown."""

PASSES, UPDATE, PROBE = PHASES = "forward and backward", "update", "probe"
"""Phases of a run, whose peaks differ."""
