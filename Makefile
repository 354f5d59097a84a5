# On a fresh machine: `make demo` trains, `make test` tests. `make check` is what CI runs. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
VENV ?= .venv
JOB ?= examples/shakespeare.toml
WORKERS ?= 2
PYTEST_ARGS ?=
BASE_IMAGE ?=
BUILD ?=

BIN := $(VENV)/bin
SOURCES := conftest.py src tests benchmarks $(wildcard examples)
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.PHONY: help demo test quick check format format-check lint types layers docs bench bench-peers hooks images clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: $(VENV)/.installed-demo ## install, fetch what it needs, run the main job (JOB=examples/shakespeare.toml)
	@echo "==> atoll run $(JOB)"
	@$(BIN)/atoll run $(JOB)

test: $(VENV)/.installed-dev ## run the whole suite: tests, docs, every example in a docstring
	@echo "==> tests ($(WORKERS) workers)"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

quick: $(VENV)/.installed-dev ## run the tests that take less than about five seconds and download nothing
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not fetch" $(PYTEST_ARGS)

check: format-check lint types layers test ## everything that must hold: format, lint, types, layers, tests

format: $(VENV)/.installed-dev ## write the sources in the one format
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix --exit-zero --quiet $(SOURCES)

format-check: $(VENV)/.installed-dev ## is everything in the one format?
	@echo "==> format"
	@$(BIN)/ruff format --check $(SOURCES)

lint: $(VENV)/.installed-dev ## ruff
	@echo "==> lint"
	@$(BIN)/ruff check $(SOURCES)

types: $(VENV)/.installed-dev ## mypy --strict
	@echo "==> types"
	@$(BIN)/mypy

layers: $(VENV)/.installed-dev ## imports point down only
	@echo "==> layers"
	@$(BIN)/lint-imports --no-logo

docs: $(VENV)/.installed-dev ## run every code block of the README and docs/
	@$(BIN)/python -m pytest tests/test_docs.py $(PYTEST_ARGS)

bench: $(VENV)/.installed-dev ## run every benchmark: tables to the screen, JSON to benchmarks/out/
	@for script in $(filter-out $(addprefix benchmarks/,results.py lora_setting.py products.py ends.py machines.py wan_line.py flower_network.py),$(wildcard benchmarks/*.py)); do \
	  echo "==> $$script"; $(BIN)/python $$script; done

bench-peers: $(VENV)/.installed-dev ## Atoll beside Flower, pfl, NVFlare and FedJAX, each installed apart (an hour or more)
	@$(BIN)/python benchmarks/peers/run.py
	@$(BIN)/python benchmarks/flower_network.py

hooks: $(VENV)/.installed-dev ## make git run the checks before every commit
	@$(BIN)/pre-commit install

images: ## build the container images (BASE_IMAGE=..., and what else docker build is to be given: BUILD=...)
	@for image in base coordinator site; do echo "==> atoll/$$image:$(VERSION)"; \
	  DOCKER_BUILDKIT=1 docker build $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) $(BUILD) \
	    -f deploy/docker/$$image/Dockerfile -t atoll/$$image:$(VERSION) .; done

clean: ## remove what make and the checks made; runs and fetched data stay
	@rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache benchmarks/out
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "clean"

# The environment. A stamp is older than what it depends on when an install is due; installing adds to what is there.
$(VENV)/.installed-demo: extras := llm,data
$(VENV)/.installed-dev: extras := dev
$(VENV)/.installed-%: pyproject.toml constraints.txt hatch_build.py src/atoll/remote/protocol.proto
	@command -v $(PYTHON) >/dev/null || { echo "No '$(PYTHON)' here: install Python 3.11 or newer, or say PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$$($(PYTHON) -V) is too old: Atoll needs Python 3.11 or newer. Say PYTHON=..."; exit 1; }
	@$(BIN)/python -c '' 2>/dev/null || { echo "==> environment in $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "==> installing atoll[$(extras)] with the versions of constraints.txt (minutes, the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(extras)]' \
	  2> $(VENV)/pip.err | sed -unE -e '/\.metadata/d' -e 's/^ *Downloading ([^ ]+) (\(.*\))?.*/    \1 \2/p' \
	  -e 's/^ *(Installing) collected.*/    unpacking, a minute or two/p' || { cat $(VENV)/pip.err; exit 1; }
	@touch $@
