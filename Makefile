# The commands of this project. Everything is installed into .venv, nothing elsewhere.

PYTHON ?= python3
# An extra package index for torch, e.g. one with CPU builds; empty: pip's own settings.
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
CSRC := $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)

.PHONY: help install trackers demo readme test bench lint clean
.DEFAULT_GOAL := help

help:
	@echo "make install   .venv with the pinned dependencies, the C++ extension built"
	@echo "make demo      the whole regime on CPU in minutes: pretrain, SFT, reward model, rejection sampling, export"
	@echo "make test      all tests that need no GPU (PYTEST_ARGS='-k name' narrows them)"
	@echo "make readme    types README's commands on text of your own, and checks what they print"
	@echo "make bench     all benchmarks; results under bench_out/"
	@echo "make trackers  adds wandb and swanlab, for logging.wandb and logging.swanlab"
	@echo "make lint      ruff check, ruff format, types, layering test"
	@echo "make clean     removes build products and caches, keeps .venv"
	@echo "Variables: PYTHON=$(PYTHON) (3.10 or newer), TORCH_INDEX=URL (extra index for torch)"

install: $(STAMP)

# torch goes first, alone with the build tools: its pin decides between a CPU and a CUDA build, and
# pip prefers 2.13.0+cpu to 2.13.0 where an index or a --find-links folder offers it.
$(STAMP): setup.py constraints.txt $(CSRC)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python %d.%d is too old: megatron_chimed needs 3.10 or newer. Try: make install PYTHON=python3.11" % sys.version_info[:2])'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch setuptools pybind11
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

# swanlab asks for a protobuf below 7, sentencepiece needs 7.36 or newer. It works with the newer one,
# so its wish is overruled; pip says so in a line that begins with ERROR and installs all the same.
trackers: install
	grep -v '^protobuf==' constraints.txt > $(VENV)/swanlab_constraints.txt
	$(PIP) install -c $(VENV)/swanlab_constraints.txt wandb swanlab
	$(PIP) install -c constraints.txt protobuf

demo: install
	$(BIN)/python examples/quickstart/run.py

readme: install
	$(BIN)/python -m tests.readme

# One thread per process: the tests run up to four at once, and idle OpenMP threads spin.
test: export OMP_NUM_THREADS := 1
test: install
	$(BIN)/python -m pytest -m "not gpu" $(PYTEST_ARGS)

# The baselines that a benchmark compares with are installed here and by nothing else.
bench: install
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[dev,bench]'
	@mkdir -p bench_out
	@for script in $$(grep -l __main__ benchmarks/*.py); do \
	    echo "== $$script"; $(BIN)/python $$script || exit 1; done

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest -q tests/test_layering.py

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache .hypothesis bench_out $(STAMP)
	rm -f megatron_chimed/*.so
	find megatron_chimed tools tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
