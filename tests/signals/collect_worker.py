"""Collects signals under torchrun, for `test_signals_ranks`.

torchrun --nproc-per-node 2 collect_worker.py STORE [VICTIM]

The rank VICTIM is killed at its next batch once the store holds a block.
"""

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.distributed as dist

import gradwise as gw
from gradwise.data import Collator
from tests.signals.processes import kill_self
from tests.signals.zoo import make, samples


def main(store: str, victim: int = -1) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    done = Path(store, "done")

    def collator(rows: list[Any]) -> Any:
        if dist.get_rank() == victim and done.exists() and any(done.read_bytes()):
            kill_self()
        return Collator(0)(rows)

    want = ("loss", "embedding", "grad_norm", "grad", "head_norm", "middle_embedding")
    options: Any = {"grad_dim": 16, "batch_tokens": 40, "progress": False}
    gw.collect(make("Llama"), samples(24), collator, want, store=store, **options)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
