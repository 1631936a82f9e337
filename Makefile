# From a fresh clone, `make demo` and `make test` each do everything they need, once.
#
#   make demo     generated world -> encoder -> train -> evaluate -> add new items -> bundle, report and page, in demo-out/
#   make test     ruff, mypy and the fast tests
#   make docs     build the guide into docs/_build/html
#
# Settings:
#   PYTHON=python3.12             the interpreter for .venv (3.11 or newer; found by itself if not given)
#   TORCH="torch==2.13.0"         another torch build, e.g. TORCH="torch==2.13.0+cpu" with PIP_EXTRA_INDEX_URL set to
#                                 PyTorch's index of CPU builds (the small one on Linux)
#   VENV=.venv                    where the virtual environment goes
#   DEMO_OUT=demo-out             where the demo writes
#   PYTEST_ARGS="-k split -x"     more arguments for pytest

VENV ?= .venv
PYTHON ?=
TORCH ?= $(shell grep '^torch==' constraints.txt)
DEMO_OUT ?= demo-out
WORKERS ?= 2
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test test-all lint format docs bench clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//; p' Makefile

demo: $(VENV)/.ready-demo
	$(BIN)/firstlight demo --out "$(DEMO_OUT)"

test: lint
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) $(PYTEST_ARGS)

test-all: lint
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.ready-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.ready-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.ready-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

bench: $(VENV)/.ready-bench
	$(BIN)/python benchmarks/startup.py

clean:
	rm -rf docs/_build $(DEMO_OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis

# --- set-up, done once; done again when pyproject.toml or the constraints change -----------------------------

$(VENV)/.ready-venv: constraints.txt
	@echo "== set-up: virtual environment $(VENV)"
	@set -e; \
	for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    found=$$python; break; \
	  elif [ -n "$(PYTHON)" ]; then \
	    echo "PYTHON=$(PYTHON) does not run or is older than Python 3.11" >&2; exit 1; \
	  fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "firstlight needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ]; then $$found -m venv $(VENV); fi; \
	{ grep -v '^torch==' constraints.txt || true; echo "$(TORCH)"; } > $(VENV)/constraints.txt
	@touch $@

$(VENV)/.ready-demo: EXTRAS := plot,serve
$(VENV)/.ready-test: EXTRAS := plot,serve,ann,test,dev
$(VENV)/.ready-docs: EXTRAS := plot,serve,docs
$(VENV)/.ready-bench: EXTRAS := plot,test,bench

$(VENV)/.ready-%: pyproject.toml $(VENV)/.ready-venv
	@echo "== set-up: installing firstlight[$(EXTRAS)] with $(TORCH) (the first time takes a few minutes)"
	$(PIP) install --constraint $(VENV)/constraints.txt "$(TORCH)" --editable ".[$(EXTRAS)]"
	@touch $@
