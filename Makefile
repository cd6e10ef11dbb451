# `make run` and `make test` set up .venv by themselves; nothing else has to be installed first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help run test slow lint bench fuzz docs

help:
	@echo "make run    set up .venv and run the main experiment (quadstable)"
	@echo "make test   set up .venv and run the tests"
	@echo "make slow   the slow and statistical tests"
	@echo "make lint   ruff, and mypy on the public names"
	@echo "make fuzz   2000 damaged files and 325 mistaken command lines: read right, or refused in two lines"
	@echo "make docs   the documentation as a site: site/index.html"
	@echo "make bench  the defaults against the published recipe: error, CPU seconds, memory; writes docs/benchmarks.md"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[sweep,slurm,nwb,wandb,dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

run: $(VENV)/.installed
	$(BIN)/python train.py

# One process on every core (four at most, each needs up to 2 GB), with one thread each.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

slow: $(VENV)/.docs
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python experiments/benchmark.py --page docs/benchmarks.md

fuzz: $(VENV)/.installed
	$(BIN)/python tests/fuzz.py

docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Written: site/index.html"
