# `make run`, `make test`: each sets up what it needs and does its job.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Elsewhere plain torch is a CUDA build of gigabytes; set TORCH_INDEX= to take that one.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help venv run test test-slow check format clean
