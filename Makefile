# The commands of this project. Everything is installed into .venv, nothing elsewhere.

PYTHON ?= python3
# An extra package index for torch, e.g. one with CPU builds; empty: pip's own settings.
TORCH_INDEX ?=
# The model of `make demo`: ziya or qwen.
MODEL ?= ziya

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
CSRC := $(filter-out %.pyc,$(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*))
# The library holds a digest of the ops' schemas, which are in these.
SCHEMAS := $(wildcard megatron_chimed/kernels/*.py)

# What one runs between edits: unit tests that start no ranks and wait for nothing.
FAST := tests/test_layering.py $(filter-out tests/unit/examples tests/unit/planning tests/unit/tools,$(wildcard tests/unit/*))
FAST_MARKS := not gpu and not full and not compare and not slow and not timing and not ranks
# Two processes; tests/tiers.py says which tests follow one another in one.
SPREAD := -n 2 --dist loadgroup --no-loadscope-reorder
# Jobs of several ranks that run on nccl where there are two GPUs or more.
GPU_RANKS := $(patsubst %,tests/distributed/test_%.py,layouts resume packing generation)
.PHONY: help install trackers demo readme test-fast test test-full test-compare test-gpu bench lint wheel clean
.DEFAULT_GOAL := help

help:
	@echo "make install   .venv with the pinned dependencies and the C++ extensions"
	@echo "make demo      the full training pipeline on CPU in minutes: pretrain, SFT, reward model,"
	@echo "               rejection sampling, export"
	@echo "make test-fast unit tests to run between edits"
	@echo "make test      every behaviour at least once, without a GPU (PYTEST_ARGS='-k name' narrows it)"
	@echo "make test-full all of it: every layout, shape and type"
	@echo "make test-compare  comparisons with other versions of libraries, each in .venv-compare/"
	@echo "make test-gpu  the kernels on a GPU, and jobs of several ranks on as many GPUs"
	@echo "make readme    runs README's commands and checks what they print"
	@echo "make bench     all benchmarks; results under bench_out/"
	@echo "make trackers  installs wandb and swanlab, for logging.wandb and logging.swanlab"
	@echo "make lint      ruff check, ruff format, types, layering test"
	@echo "make wheel     an installable wheel under dist/, with the compiled extensions"
	@echo "make clean     removes build products and caches, keeps .venv"
	@echo "Variables: PYTHON=$(PYTHON) (3.10 or newer), TORCH_INDEX=URL (extra index for torch),"
	@echo "           MODEL=$(MODEL) (of the demo: ziya or qwen)"

install: $(STAMP)

# torch goes first, alone with the build tools: its pin decides between a CPU and a CUDA build, and
# pip prefers 2.13.0+cpu to 2.13.0 where an index or a --find-links folder offers it. A build for GPUs
# brings the Triton that it needs, under a name of its own for AMD; for a CPU build it is added.
$(STAMP): setup.py constraints.txt $(CSRC) $(SCHEMAS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python %d.%d is too old: megatron_chimed needs 3.10 or newer. Try: make install PYTHON=python3.11" % sys.version_info[:2])'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch setuptools pybind11
	@extras=dev; $(BIN)/python -c 'import triton' 2>/dev/null || extras=dev,triton; set -x; \
	$(PIP) install -c constraints.txt --no-build-isolation -e ".[$$extras]"
	@$(BIN)/python csrc/build_kernels.py
	@touch $@

# swanlab requires protobuf below 7, sentencepiece 7.36 or newer. swanlab works with the newer one, so
# its requirement is overridden; pip reports that in a line that begins with ERROR and still installs.
trackers: install
	grep -v '^protobuf==' constraints.txt > $(VENV)/swanlab_constraints.txt
	$(PIP) install -c $(VENV)/swanlab_constraints.txt wandb swanlab
	$(PIP) install -c constraints.txt protobuf

demo: install
	PATH="$(CURDIR)/$(BIN):$$PATH" MODEL="$(MODEL)" bash examples/quickstart/run.sh

readme: install
	$(BIN)/python -m tests.readme

# One thread per process: the tests run up to four at once, and idle OpenMP threads spin.
# docs/development.md says what belongs to which tier, and where the time goes.
test-fast test test-full test-compare test-gpu: export OMP_NUM_THREADS := 1
test-fast: install
	$(BIN)/python -m pytest -q $(SPREAD) -m "$(FAST_MARKS)" $(FAST) $(PYTEST_ARGS)

test: install
	$(BIN)/python -m pytest $(SPREAD) -m "not gpu and not full and not compare" $(PYTEST_ARGS)

test-full: install
	$(BIN)/python -m pytest $(SPREAD) -m "not gpu and not compare" $(PYTEST_ARGS)

# An environment for each file of requirements; a comparison without its environment is skipped.
COMPARED := $(patsubst tests/compare/%.txt,.venv-compare/%/.installed,$(wildcard tests/compare/*.txt))

.venv-compare/%/.installed: tests/compare/%.txt
	$(PYTHON) -m venv .venv-compare/$*
	.venv-compare/$*/bin/python -m pip --disable-pip-version-check install \
	    $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r $<
	@touch $@

test-compare: install $(COMPARED)
	$(BIN)/python -m pytest -m compare $(PYTEST_ARGS)

# Other tests hide the GPUs: conftest.py.
test-gpu: install
	$(BIN)/python -m pytest --gpu -m "not full and not compare and (gpu or ranks)" \
	    tests/unit/kernels tests/unit/model $(GPU_RANKS) $(PYTEST_ARGS)

# Only this target installs the baselines that benchmarks compare with. device_check.py needs a GPU.
bench: install
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[dev,bench]'
	@mkdir -p bench_out
	@for script in $$(grep -l __main__ benchmarks/*.py | grep -v /device_); do \
	    echo "== $$script"; $(BIN)/python $$script || exit 1; done

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest -q tests/test_layering.py

# setuptools would pack whatever an earlier build left in build/lib*. CUDA kernels are in it where nvcc
# is found; BUILD_CUDA=0 or 1 decides instead.
wheel: install
	rm -rf build/lib* build/bdist*
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis bench_out $(STAMP)
	rm -f megatron_chimed/*.so
	find megatron_chimed tools tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
