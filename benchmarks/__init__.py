"""Benchmarks: every number in the documentation comes from a script here and its committed result file.

    python -m benchmarks.grace.speed      # measures a claim, into benchmarks/results/grace-speed.json
    python -m benchmarks.results          # docs/results: a page per result file, and the index of all claims
    make bench                            # all of them; about a day on two cores

Run them from the root of the repository. A script that was interrupted resumes where it stopped: every
finished measurement is in its result file. Real data are expected in `../shared/data`, beside the repository;
models and pools that a benchmark needs are made in `build/` at the first use.

| package | question |
|---|---|
| `signals` | What do per-sample gradients cost, and how accurate are their projections? |
| `grace` | How fast and how large is a selection, which samples does it pick, does it respect `overhead`? |
| `d3` | Do edges predict which order is better, and how near the optimum is the solver? |
| `direct` | How fast and how exact are the solvers, and does the selection help an annealing phase? |
| `layers` | What do LISA and GRASS save, and what do they cost in held-out loss? |
| `compare` | Does a selection, an order or a layer policy pay at equal cost? |
| `common` | Result files, tables, data, models, clocks and memory, for all of them |
"""

import os

# Before torch is imported, which reads this once: two pools of threads on a busy machine wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
