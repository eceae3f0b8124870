# The two commands are `make demo` and `make test`; the rest are their parts.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
CODE := src tests scripts benchmarks

.PHONY: demo test lint types layers unit compat vm test-matrix bench install clean

demo: $(INSTALLED)
	$(BIN)/python -m tests.vm.demo

test: lint types layers unit vm

install: $(INSTALLED)

$(INSTALLED): pyproject.toml scripts/setup-machine
	scripts/setup-machine
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

types: $(INSTALLED)
	$(BIN)/mypy

layers: $(INSTALLED)
	$(BIN)/lint-imports

unit: $(INSTALLED)
	$(PYTEST) -n auto tests/unit tests/property tests/meta

# Files stay together: what a file opens once, its tests share. Dumps are made once, under a lock. Machines that
# run for minutes come first, what is done in a moment last: so both workers end together.
vm: $(INSTALLED)
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder --durations=25 tests/vm tests/compat -m "not matrix"

test-matrix: $(INSTALLED)
	$(PYTEST) tests/compat tests/vm

bench: $(INSTALLED)
	$(BIN)/python benchmarks/open.py
	$(BIN)/python benchmarks/filter.py
	$(BIN)/python benchmarks/commands.py
	$(BIN)/python benchmarks/evidence.py
	$(BIN)/python -m benchmarks.triage
	@if [ "$$(id -u)" = 0 ]; then set -x; $(BIN)/python -m benchmarks.capture; \
	else echo "benchmarks.capture is left out: only root can build its guest"; fi

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
