# make demo   set up and teach the built-in model to draw what was asked, on this machine's CPU; leaves pictures and a page in runs/demo
# make test   set up in a fresh environment and run the whole test suite
# make docs   build the documentation site into build/site; warnings and undocumented public names fail
# make dist   build wheel and sdist into dist/ and check what an index would show of them
# make versions  the fast tests with the lowest and with the newest dependencies (gigabytes, half an hour)
# make check  format, lint, types, import contract and the fast tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The CPU build of the pinned torch first: anything that asks for torch later finds it there.
TORCH := torch==2.13.0
# A worker for every core, eight at most; the tests of a file, which share its fixtures, go to one of them.
PARALLEL := -n logical --maxprocesses 8 --dist loadfile

.PHONY: demo test docs dist versions lint check format clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# What the demo needs, and the page in the browser: none of the developer's tools.
$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ui]'
	touch $@

demo: $(VENV)/.demo
	rm -rf runs/demo
	$(BIN)/rlcm train demo name=demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(PARALLEL)

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

versions:
	$(PYTHON) benchmarks/versions.py

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
