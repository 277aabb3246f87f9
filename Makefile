# Everything this project writes lies in $(STATE); `make clean` removes it.
STATE := .kycflow
VENV := $(STATE)/venv
BIN := $(VENV)/bin
PYTHON ?= python3
export PYTHONPYCACHEPREFIX := $(CURDIR)/$(STATE)/cache/python
export HYPOTHESIS_STORAGE_DIRECTORY := $(CURDIR)/$(STATE)/cache/hypothesis
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.ready-bench

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-prefect chaos bench-faces bench-quality bench-orchestration bench-scale bench-waiting bench-workers lint lock clean

help:  ## what can be run
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	  f"kycflow needs Python 3.11, 3.12 or 3.13, and {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	  -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip --disable-pip-version-check check
	@touch $(READY)

$(BENCH_READY): $(READY) requirements-bench.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	  -r requirements-bench.lock
	@touch $(BENCH_READY)

setup: $(READY)  ## virtual environment, model weights, sample media, Prefect's database
	$(BIN)/kycflow models pull --samples
	$(BIN)/kycflow up --prepare

demo: $(READY)  ## start everything, verify six sessions, show their decisions
	$(BIN)/kycflow demo

up: $(READY)  ## start everything and leave it running until Ctrl-C
	$(BIN)/kycflow up

test: $(READY)  ## all tests, on real servers
	$(BIN)/kycflow models pull --samples
	$(BIN)/python -m pytest

OTHER := $(STATE)/venv-prefect-$(PREFECT)
test-prefect:  ## tests on another release of Prefect: PREFECT=3.9.1 (ARGS=tests/unit for some of them)
	@: $(if $(PREFECT),,$(error say which release: make test-prefect PREFECT=3.9.1))
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check prefect==$(PREFECT)
	$(OTHER)/bin/kycflow models pull --samples
	$(OTHER)/bin/python -m pytest -x tests/contract
	$(OTHER)/bin/python -m pytest $(ARGS)

chaos: $(READY)  ## 60 sessions while workers and servers are killed; 1 if anything is lost or doubled (ARGS=--seed=7)
	$(BIN)/kycflow models pull --samples
	$(BIN)/python -m tests.chaos $(ARGS)

bench-faces: $(READY)  ## the engine against DeepFace.verify in a loop
	$(BIN)/kycflow models pull --samples
	$(BIN)/python -m tests.benchmarks.faces

bench-quality: $(READY)  ## what blur, size and darkness cost: PAIRS=pairs.csv IMAGES=folder
	$(BIN)/kycflow models pull
	$(BIN)/python -m tests.benchmarks.quality $(PAIRS) $(IMAGES)

bench-workers: $(READY)  ## flow runs a second and their cost, resident worker beside Prefect's process worker
	$(BIN)/python -m tests.benchmarks.workers

bench-orchestration: $(BENCH_READY)  ## the same sessions with Celery and Redis, with Temporal, and with this project
	$(BIN)/kycflow models pull --samples
	$(BIN)/python -m tests.benchmarks.orchestration $(ARGS)

bench-scale: $(BENCH_READY)  ## flow runs a second with 1, 2 and 4 API processes and workers, and what 1,000 sessions a second need
	$(BIN)/python -m tests.benchmarks.scale $(ARGS)

bench-waiting: $(READY)  ## what 10,000 sessions that wait cost workers and sweep
	$(BIN)/python -m tests.benchmarks.waiting

lint: $(READY)  ## ruff, mypy (strict), the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir $(STATE)/cache/import-linter

COMPILE := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate --no-header
lock:  ## renew the lock files (needs uv)
	$(COMPILE) --upgrade --extra dev --output-file requirements.lock
	$(COMPILE) --constraint requirements.lock --extra bench --output-file requirements-bench.lock
	@# onnxruntime-gpu brings the same module as onnxruntime: only one of the two may be installed.
	@mkdir -p $(STATE) && echo "onnxruntime ; sys_platform == 'never'" > $(STATE)/cuda-overrides.txt
	$(COMPILE) --upgrade --extra cuda --override $(STATE)/cuda-overrides.txt --output-file requirements-cuda.lock

clean:  ## remove everything this project wrote
	rm -rf $(STATE)
