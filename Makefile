# `make demo` and `make test` set up everything they need in .venv, from nothing.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3.11
LOCK ?= cpu
BIN := .venv/bin
READY := .venv/.ready-$(LOCK)
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' locks/$(LOCK)-py311.txt)

.PHONY: help setup demo test soak quick check format bench docs lock clean

help:  ## what each target does
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## install the locked packages into .venv

$(READY): locks/$(LOCK)-py311.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "seatrial: $(PYTHON) is not installed: install Python 3.11 or set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --dry-run --no-deps "$(TORCH)" >/dev/null 2>&1 || { echo "seatrial: pip finds no $(TORCH): set PIP_EXTRA_INDEX_URL to the '$(LOCK)' package index that https://pytorch.org/get-started/locally/ prints, and run make again"; exit 1; }
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r locks/$(LOCK)-py311.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: $(READY)  ## the whole loop on this machine: fine-tune, register, serve, split, decide
	$(BIN)/python -m demo

test: $(READY) check  ## what is promised, with real MLflow, Ray, vLLM, S3 and PostgreSQL
	$(BIN)/python -m pytest -m "not soak"

soak: $(READY)  ## the same at greater length and in more ways, before a release
	$(BIN)/python -m pytest -m soak

quick: $(READY)  ## the tests that start no server
	$(BIN)/python -m pytest -m "not slow"

check: $(READY)  ## lint, types, layers, the platform/ guard, generated pages
	@test ! -e platform/__init__.py || { echo "platform/__init__.py shadows the standard library: delete it"; exit 1; }
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tools.reference --check

format: $(READY)  ## rewrite the code in the house's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## our figures beside the peers', as ratios
	@for file in benchmarks/[a-z]*.py; do $(BIN)/python -m "benchmarks.$$(basename $$file .py)"; done

docs: $(READY)  ## write the generated reference pages again
	$(BIN)/python -m tools.reference

lock:  ## resolve the two lock files again (needs uv)
	for kind in cpu gpu; do \
	  extra=$$([ $$kind = cpu ] && echo "--override locks/without-cuda-media.txt" || true); \
	  uv pip compile locks/$$kind-py311.in $$extra --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    --generate-hashes --no-emit-package seatrial --no-annotate --no-header -o locks/$$kind-py311.txt; \
	done

clean:  ## delete everything that make made
	rm -rf .venv runs .seatrial
