# Two commands do all the set-up: `make demo` and `make test`.
# Python 3.11 or newer; PYTHON=... chooses another than python3.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock

# What runs without the optional packages, on the newest Python as well: tests of experiments and
# of benchmarks, and what reads data sets, builds or runs long, are left out.
CORE_TESTS := $(filter-out $(shell grep -lE '^(from|import) (experiments|benchmarks)' tests/*.py) \
	$(patsubst %,tests/test_%.py,data docs interruption notebooks package plans processes site \
	streamed_cifar streamed_folder streamed_kills streamed_processes streamed_recipes \
	streamed_training targets), $(wildcard tests/test_*.py))

# The core on the oldest versions that are admitted: what touches JAX, Flax, optax and NumPy most.
OLDEST_TESTS := $(patsubst %,tests/test_%.py,masks scores prune schedules granularity selection \
	transforms dynamic trees training runs imp connectivity supermask checkpoints records \
	tickets data text_data streams)

.PHONY: demo test slow-tests lint types core-tests oldest-tests run-oldest-tests docs notebooks \
	bench targets compile-targets clean

demo: $(VENV)/.demo
	$(BIN)/python -m experiments.imp

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# Batteries over every member of a kind, whole experiments, pages of docs, and runs that are killed.
slow-tests: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m slow

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

# The newest Python and, without the lock, the newest packages: of the slow ones only the battery
# over every optimizer of optax, for there a new version brings new members.
core-tests: $(VENV)/.core
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(CORE_TESTS)
	$(BIN)/python -m pytest -n $(JOBS) -m slow tests/test_optimizers.py

oldest-tests:
	$(MAKE) VENV=$(VENV)-oldest run-oldest-tests

run-oldest-tests: $(VENV)/.oldest
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(OLDEST_TESTS)

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

# In a browser; what each one is: notebooks/README.md.
notebooks: $(VENV)/.notebooks
	$(BIN)/jupyter lab notebooks

# The documentation site, in build/docs; nothing is executed, nothing fetched.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -n -W --keep-going -j auto -q docs build/docs
	@echo "open build/docs/index.html"

# The programs of a GPU and of a TPU, compiled on any machine. The wheels are some gigabytes:
# an environment of its own.
targets:
	$(MAKE) VENV=$(VENV)-targets compile-targets

compile-targets: $(VENV)/.targets
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest tests/test_targets.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; set PYTHON=, as in: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml requirements.lock
	$(PIP) --editable '.[experiments]'
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml requirements.lock
	$(PIP) --editable '.[test]'
	touch $@

$(VENV)/.bench: $(VENV)/.demo
	$(PIP) --editable '.[experiments,bench]'
	touch $@

$(VENV)/.notebooks: $(VENV)/bin/python pyproject.toml requirements.lock
	$(PIP) --editable '.[notebooks]'
	touch $@

$(VENV)/.docs: $(VENV)/bin/python pyproject.toml requirements.lock
	$(PIP) --editable '.[docs]'
	touch $@

$(VENV)/.targets: $(VENV)/bin/python pyproject.toml requirements.lock
	$(PIP) --editable '.[core-test,targets]'
	touch $@

$(VENV)/.core: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[core-test]'
	touch $@

$(VENV)/.oldest: $(VENV)/bin/python pyproject.toml requirements.oldest
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint requirements.oldest --editable '.[core-test]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-targets $(VENV)-oldest build dist *.egg-info
