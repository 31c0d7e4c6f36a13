# Everything starts from Python 3.11+, git and make; each target does its own set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.PHONY: setup demo test check bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "retinue needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/retinue demo

# Lint, types, import rules and the fast tests: no services, under a minute.
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n $(WORKERS) -m "not slow and not real and not postgres"

# Everything, on SQLite and PostgreSQL, with real processes. SEED=n replays one simulated seed instead.
test: setup
ifdef SEED
	$(BIN)/retinue torture --seed $(SEED) --seeds 1 --verbose
else
	$(BIN)/pytest -n $(WORKERS)
endif

bench: setup
	$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf $(VENV) build dist
