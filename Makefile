# Each command is complete on a fresh machine: it makes its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
SHIM ?= $(wildcard ../shared/reference/torchvision_shim.py)

.PHONY: help demo test check unit test-heavy docs zoo clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/demo  ## explain photos with the built-in model; say where the picture is
	$(BIN)/python examples/builtin.py out/demo.png

test: check unit  ## everything a change must pass: lint, types, tests, examples in the docs

check: $(VENV)/test  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/test  ## tests and the examples in docstrings and docs
	CAMLUCIDA_TORCHVISION_SHIM="$(abspath $(SHIM))" $(BIN)/python -m pytest --numprocesses auto --quiet

test-heavy: $(VENV)/test  ## the sweeps that take minutes
	CAMLUCIDA_TORCHVISION_SHIM="$(abspath $(SHIM))" $(BIN)/python -m pytest --quiet -m heavy

docs: $(VENV)/test  ## the pages that are made from the registry
	$(BIN)/python scripts/make_methods_page.py

zoo: $(VENV)/test  ## the automatic choice over whole zoos; goes on where it was stopped (ZOO=--all for every net)
	CAMLUCIDA_TORCHVISION_SHIM="$(abspath $(SHIM))" PYTHONPATH=src $(BIN)/python benchmarks/zoo.py $(ZOO)

clean:
	rm -rf $(VENV) out .mypy_cache .ruff_cache .pytest_cache

$(VENV)/demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[cli,demo]'
	touch $@

$(VENV)/test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[test]'
	touch $@
