# Needs Python 3.11 or later, make and git; everything else is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo demo-cluster test check bench wheel clean

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing promptmill and its tools into $(VENV)"
	@{ $(PIP) --upgrade "pip>=25.1" && $(PIP) --editable ".[local,parquet]" --group dev; } \
		> $(VENV)/install.log 2>&1 || { cat $(VENV)/install.log; exit 1; }
	@touch $(STAMP)

demo: $(STAMP)  ## Work a real file of prompts through, against your endpoint or a rehearsal one.
	@$(BIN)/python examples/demo.py

demo-cluster: $(STAMP)  ## The same through a local cluster: PostgreSQL, Redis, Celery workers.
	@$(BIN)/python examples/demo_cluster.py

check: $(STAMP)  ## What does not need to run: style, types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(STAMP) check  ## Every test; brings its own servers.
	$(BIN)/python -m pytest -n 3

bench: $(STAMP)  ## Measure, beside something to compare with, on this machine.
	$(BIN)/python -m bench

wheel: $(STAMP)
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info demo-out
