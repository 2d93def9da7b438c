# Every target sets up what it needs: a virtual environment in .venv with the versions of
# constraints.txt. PYTHON chooses the interpreter, 3.11 or newer.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help demo test test-slow check bench clean

help:
	@echo "make demo       fit, query and search on real data; figures and report in out/"
	@echo "make test       the fast tests"
	@echo "make test-slow  the slow tests too"
	@echo "make check      formatter, linter, type checker, import contract"
	@echo "make bench      the benchmarks, quickly; without --quick by hand, see README.md"

# torch first and pinned: left to the other packages, pip may pull another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/python examples/quickstart.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m 'slow or not slow'

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks search --quick
	$(BIN)/python -m benchmarks pfn --quick

clean:
	rm -rf .venv out runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
