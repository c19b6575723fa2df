# The two commands to begin with: `make demo` and `make test`.
# Each makes what it needs: an environment in .venv with this project installed in it.
# Only make and Python 3.11 or newer have to be there.

.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
# pytest's processes; two cores are enough for the ten minutes that `make test` may take.
JOBS ?= auto
# Lines that decide whether data lives must all be run by a test, and both ways of each branch.
COVERED := cowdb/meta.py,cowdb/recovery.py,cowdb/page.py
PYTEST_ARGS ?=
BENCH ?= peers copying
BENCH_ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16

.PHONY: demo
demo: $(VENV)/stamp-run ## show what cowdb does: load, look up, snapshots, kill -9
	@$(BIN)/python tools/demo.py $(DEMO_ARGS)

# Coverage is of the plain kernel. What concerns the kernel is run again with the compiled one, if it could be built.
TWICE := page space tree path cursor writer early views freelist transaction handlers catalog pager group combining recovery crash database core \
    readers handle locks interrupts interleavings processes forks corruption machine

.PHONY: test
test: $(VENV)/stamp-test ## run the tests, with coverage
	COWDB_PURE=1 HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-ci} $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --cov --cov-report= --cov-fail-under=0 $(PYTEST_ARGS)
	@rm -f .coverage.* # half written by children that were killed
	$(BIN)/coverage report
	$(BIN)/coverage report --include=$(COVERED) --fail-under=100
	@if $(BIN)/python -c 'import sys; from cowdb import kernel; sys.exit(kernel.FORM != "compiled")'; then \
	    echo "== once more, with the compiled kernel"; \
	    COWDB_PURE=0 HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-ci} $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 \
	        $(TWICE:%=tests/test_%.py) $(PYTEST_ARGS); \
	fi

.PHONY: lint
lint: $(VENV)/stamp-dev ## style, types and the order of the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/stamp-dev ## put the source into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Quick: make bench BENCH_ARGS="--records 20000"; into docs/: make bench BENCH_ARGS="--write-docs"
.PHONY: bench
bench: $(VENV)/stamp-bench ## measure, beside the peers: make bench BENCH=peers BENCH_ARGS="--records 20000"
	$(BIN)/python tools/bench/run.py $(BENCH) $(BENCH_ARGS)

# Power cuts, failed calls, damaged files, killed processes: five minutes, or FUZZ_ARGS="--seconds 3600 --seed 7".
FUZZ_ARGS ?=
.PHONY: fuzz
fuzz: $(VENV)/stamp-fuzz ## try to lose data, in every way we know: make fuzz FUZZ_ARGS="--seconds 60"
	$(BIN)/python -m fuzz all $(FUZZ_ARGS)

.PHONY: clean
clean: ## throw away the environment and all that was made
	rm -rf cowdb/_kernel*.so $(VENV) build dist cowdb.egg-info .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find cowdb fuzz tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# ---------------------------------------------------------------- the environment

# Installed anew only when pyproject.toml changes, or what is compiled (an old one would not be used); the source
# itself is used in place.

$(VENV)/stamp-run: pyproject.toml $(wildcard setup.py native/*) $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

# A peer that cannot be installed here is left out of the tables, so the others are tried one by one.
# What is compiled is compiled anew when its source has changed: an old one would not be used.
PEERS := lmdb plyvel rocksdict matplotlib
$(VENV)/stamp-bench: pyproject.toml $(wildcard setup.py native/*) $(BIN)/python
	@$(BIN)/python -m pip install --quiet --editable '.[bench]' || { \
	    $(BIN)/python -m pip install --quiet --editable . && \
	    for peer in $(PEERS); do $(BIN)/python -m pip install --quiet $$peer || echo "Going on without $$peer."; done; }
	@touch $@ $(VENV)/stamp-run

$(VENV)/stamp-fuzz: pyproject.toml $(wildcard setup.py native/*) $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	@touch $@ $(VENV)/stamp-run

$(VENV)/stamp-test: pyproject.toml $(wildcard setup.py native/*) $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/stamp-run

$(VENV)/stamp-dev: pyproject.toml $(wildcard setup.py native/*) $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/stamp-run $(VENV)/stamp-test

# The first of these that runs and is new enough, or what PYTHON= says.
$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3 python3.12 python3.13 python3.14 python; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "Making an environment in $(VENV) with `$$python --version 2>&1`"; \
	        $$python -m venv $(VENV) && exit 0; \
	        rm -rf $(VENV); \
	        echo "$$python cannot make environments: its venv module is missing (on Debian and Ubuntu: the package python3-venv)." >&2; \
	        exit 1; \
	    fi; \
	done; \
	echo "cowdb needs Python 3.11 or newer, and `python3 --version 2>&1 || echo 'no python3'` is what is here." >&2; \
	echo "If you have a newer one elsewhere, name it:  make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	exit 1
