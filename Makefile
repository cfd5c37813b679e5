# Everything a user needs. `make run` and `make test` do all set-up themselves.
SHELL := /bin/sh
CHECKOUT := $(CURDIR)
VENV := $(CHECKOUT)/.venv
BIN := $(VENV)/bin
PORT ?= 3000
PYTEST_ARGS ?=
REPEAT ?= 2
# Without bytecode every command would compile Dagster and Great Expectations anew, which takes longer than what it is there for.
unexport PYTHONDONTWRITEBYTECODE
# Tests that may not run at the same time stay in one worker: tests/conftest.py says which.
TWO_AT_ONCE := -n 2 --no-loadscope-reorder
CHAOS := $(addprefix tests/store/test_,faults.py kills.py attacks.py lease.py retention.py pull.py) \
	$(addprefix tests/images/test_,faults.py kills.py) $(addprefix tests/operations/test_,chaos.py team.py celery.py alerts.py) \
	tests/drills/test_lab_drills.py tests/backups/test_depot.py tests/test_periods.py \
	--deselect tests/drills/test_lab_drills.py::test_ten_drills_in_a_row_are_green

.PHONY: help setup setup-dev run ui test test-all lint chaos soak bench dashboards lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup:  ## make .venv with the akidb-pipelines command (no root needed)
	@scripts/setup run

setup-dev:
	@scripts/setup dev

run: setup  ## build, check and release this week's fixtures; ARGS="--week 2026-W46 --profile ci"
	@$(BIN)/akidb-pipelines run $(ARGS)

ui: setup  ## serve the Dagster UI and daemon on 127.0.0.1:3000
	@DAGSTER_HOME=$$($(BIN)/akidb-pipelines prepare-home) && export DAGSTER_HOME && cd $(CHECKOUT) && \
	$(BIN)/dagster instance concurrency set dr_drill 1 >/dev/null && \
	exec $(BIN)/dagster dev --workspace workspace.yaml --host 127.0.0.1 --port $(PORT)

lint: setup-dev  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: setup-dev lint  ## everything that CI runs
	@scripts/test-packages
	@$(BIN)/python -m pytest $(TWO_AT_ONCE) -m "not exhaustive" $(PYTEST_ARGS)

test-all: setup-dev lint  ## test, and every kill point, repeat and fault
	@scripts/test-packages
	@$(BIN)/python -m pytest $(TWO_AT_ONCE) $(PYTEST_ARGS)

chaos: setup-dev  ## the fault matrix: faults, kill points, attacks and races, REPEAT=2 times in a row
	@scripts/test-packages
	@for n in $$(seq $(REPEAT)); do $(BIN)/python -m pytest -q $(TWO_AT_ONCE) $(CHAOS) $(PYTEST_ARGS) || exit 1; done

soak: setup-dev  ## long load: 50 runs through a real daemon, and a year of history; RUNS=50
	@$(BIN)/python -m bench.soak $(RUNS)

bench: setup-dev  ## comparisons against peers and limits, as ratios
	@$(BIN)/python -m bench

dashboards: setup-dev  ## write deploy/dashboards/*.json from scripts/dashboards.py
	@$(BIN)/python scripts/dashboards.py

lock: setup-dev  ## solve requirements/*.lock anew
	@scripts/lock

clean:  ## remove what tests and tools leave; keeps var/
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
