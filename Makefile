# `make run` and `make test` set up what they need in .venv and do their job.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Elsewhere plain torch is a CUDA build of gigabytes. Set TORCH_INDEX= to take that one.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv run test test-slow check format clean

help:
	@echo "make run        set up and train on this machine (ARGS='learner.steps=40')"
	@echo "make test       set up and run the default tests"
	@echo "make test-slow  the long tests"
	@echo "make check      linter, formatter, type checker"
	@echo "make clean      remove .venv"

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	  { echo "Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "venv is missing: apt-get install python3-venv (or python3.11-venv)"; rm -rf $(VENV); exit 1; }
	@# torch alone, first: the other packages are not asked for at its index.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 0 --no-deps \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

venv: $(VENV)/.ready

run: venv
	$(BIN)/python launch.py $(ARGS)

test: venv
	$(BIN)/python -m pytest $(ARGS)

test-slow: venv
	$(BIN)/python -m pytest -m slow $(ARGS)

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)
