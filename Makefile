# Everything a person does with this repository. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PORT ?= 8000
STORE ?= models/store
.DEFAULT_GOAL := help
.PHONY: help install install-offline serve loadtest refresh test lint check clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 28

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("understudy needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.online: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.offline: $(VENV)/.online
	$(PIP) install --quiet torch==2.13.0
	$(PIP) install --quiet --constraint constraints.txt --editable '.[offline,dev]'
	@touch $@

install: $(VENV)/.online  ## the online half alone: what serving needs (no torch)

install-offline: $(VENV)/.offline  ## the offline half and the test tools too

serve: install  ## serve STORE (default models/store) on PORT (default 8000)
	$(BIN)/understudy serve --store $(STORE) --port $(PORT)

$(VENV)/.loadtest: $(VENV)/.online
	$(PIP) install --quiet --constraint constraints.txt --editable '.[loadtest]'
	@touch $@

loadtest: $(VENV)/.loadtest  ## load a server: SCENARIO=loadtest/scenarios/steady.yaml [ARGS='--set duration_s=60']
	@test -n "$(SCENARIO)" || { echo "make loadtest SCENARIO=loadtest/scenarios/NAME.yaml" >&2; exit 2; }
	$(BIN)/understudy loadtest $(SCENARIO) $(ARGS)

refresh: install-offline  ## make a student: RECIPE=models/recipes/intent.yaml STORE=my-store [ARGS=--resume]
	@test -n "$(RECIPE)" -a "$(origin STORE)" != file \
		|| { echo "make refresh RECIPE=models/recipes/NAME.yaml STORE=DIRECTORY (a store of yours)" >&2; exit 2; }
	$(BIN)/understudy refresh $(RECIPE) --store $(STORE) $(ARGS)

test: install-offline  ## run the tests (those that need data are skipped without UNDERSTUDY_DATA)
	$(BIN)/python -m pytest

lint: install-offline  ## formatting, lint, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint  ## what CI runs: lint, and the tests with their coverage floor
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

clean:  ## remove what the targets above made, but no store and no run
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage
