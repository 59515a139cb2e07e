# `make` lists the targets. Everything installs into .venv and nothing outside this folder is touched.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
CODE := openmai tests $(wildcard benchmarks)

.PHONY: help quickstart install test cluster layouts check fix bench clean

help:
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 20

quickstart: $(VENV)/.installed ## from nothing to a trained model, its report and what to try next
	$(BIN)/openmai run recipes/laptop.yaml
	@echo
	@echo 'openmai is $(BIN)/openmai; "source $(BIN)/activate" puts it on your path:'
	@echo '  openmai chat runs/laptop       talk to the model'
	@echo '  openmai serve runs/laptop      OpenAI-style API and chat page'
	@echo '  openmai plan mai-1             what 500 billion parameters would take'

install: $(VENV)/.installed-dev ## .venv with openmai and the tools of its developers

test: $(VENV)/.installed-dev ## the tests; make test ARGS="-k cli" for some of them
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(ARGS)

cluster: $(VENV)/.installed-dev ## the tests on Ray clusters that lose machines
	OMP_NUM_THREADS=1 $(BIN)/pytest -m cluster $(ARGS)

layouts: $(VENV)/.installed-dev ## the tests of every layout of several processes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m layouts $(ARGS)

check: $(VENV)/.installed-dev ## format, lint, types
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy

fix: $(VENV)/.installed-dev ## format, and mend what the linter can
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(VENV)/.installed-dev ## every benchmarks/*.py, one after the other
	@set -e; found=; for file in benchmarks/*.py; do test -f "$$file" || continue; found=1; echo "== $$file"; $(BIN)/python "$$file"; done; \
	test -n "$$found" || echo 'no benchmarks yet: a file benchmarks/<name>.py is run by this target'

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis openmai.egg-info build
	find openmai tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone: asked for by its exact version, the CPU build satisfies it where one is offered.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=python3.12 ...'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'pip>=24'
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
