# Everything installs itself into .venv, and only when pyproject.toml has changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint prove

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# The whole path on the concept world; writes demo/report.html.
demo: $(INSTALLED)
	$(BIN)/hnpretrain demo demo

# The tests of pages look at them in a browser; this finds one, or installs it where it may. Half of
# the tests' time is imports and waiting, which two processes do side by side.
test: $(INSTALLED)
	$(BIN)/python -m tests.support.browser
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Proofs that are too long for `make test`: builds that are killed a hundred times; trainings that are
# killed, resized and left running, or meet a cluster's limits (which takes Slurm: see
# tests/slurm/cluster.py); the demo's table over three seeds.
prove: $(INSTALLED)
	$(BIN)/python -m tests.prove.kills
	$(BIN)/python -m tests.prove.training
	$(BIN)/python -m tests.prove.slurm
	$(BIN)/python -m tests.prove.demo_seeds prove
