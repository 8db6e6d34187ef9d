"""Optimizer state in host memory, streamed to the device for the update and back.

`device` says what a stream needs of an accelerator, `arena` holds the state of all parameters in pinned host
memory, `stream` moves it around an optimizer's steps, and `adamw` is torch's AdamW with that built in.
"""

from gradwise.training.offload.adamw import AdamW
from gradwise.training.offload.stream import StateStream, offload_state

__all__ = ["AdamW", "StateStream", "offload_state"]
