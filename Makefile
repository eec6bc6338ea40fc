# Everyday commands. `make` alone lists them.
#
# Settings: PYTHON (the interpreter that makes the environment), VENV (where it lies), and every
# DENOISED_* variable the server understands, e.g. `DENOISED_PORT=9000 make serve`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Compiling all of torch to bytecode takes longer than compiling what is used when it is first used.
PIP_FLAGS ?= --disable-pip-version-check --no-compile --quiet --progress-bar off

PROMPT ?= a red circle on a blue background
PICTURE ?= demo-output/red-circle-on-blue.png
CLIP_PROMPT ?= a red circle moving right on a blue background
CLIP ?= demo-output/red-circle-moving-right.mp4

# The tests start hundreds of processes; without kept bytecode each would compile torch anew.
unexport PYTHONDONTWRITEBYTECODE

CODE := bench config denoised jobs models server tests workers
# One test process per core: most tests wait for servers and subprocesses they started.
TEST_PROCESSES ?= 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo serve test chaos lint format openapi bench gpu-check clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp-dev ## install everything for work on the code, tests and linters included

demo: $(VENV)/.stamp-run ## install, start a server, make a picture and a clip through it
	@$(BIN)/denoised demo --prompt "$(PROMPT)" --picture "$(PICTURE)" \
		--clip-prompt "$(CLIP_PROMPT)" --clip "$(CLIP)"

serve: $(VENV)/.stamp-run ## run the server on http://127.0.0.1:8000 until Ctrl-C
	@exec $(BIN)/denoised serve

test: $(VENV)/.stamp-dev ## run the whole test suite
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

chaos: $(VENV)/.stamp-dev ## kill everything at random for a quarter of an hour, then check every job
	$(BIN)/python -m tests.chaos $(ARGS)

lint: $(VENV)/.stamp-dev ## check style, types, import borders and the API description
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m server.openapi --check

format: $(VENV)/.stamp-dev ## bring the code into the house style
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

openapi: $(VENV)/.stamp-dev ## write openapi.yaml from the application
	$(BIN)/python -m server.openapi

bench: $(VENV)/.stamp-dev ## run every benchmark, print tables, keep JSON in bench/results/
	$(BIN)/python -m bench.run $(ARGS)

gpu-check: $(VENV)/.stamp-dev ## compare this machine's GPU with the CPU reference and time it
	$(BIN)/python -m bench.gpu_check $(ARGS)

clean: ## remove the environment, caches and demo output
	rm -rf $(VENV) demo-output build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "denoised needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# A stamp is newer than pyproject.toml when the environment matches it, so later runs install nothing.
$(VENV)/.stamp-run: pyproject.toml | $(BIN)/python
	@echo "installing denoised into $(VENV) (a few minutes the first time, torch is large)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --editable '.[embedded]'
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml | $(BIN)/python
	@echo "installing denoised with test and development tools into $(VENV)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --editable '.[dev]'
	@touch $(VENV)/.stamp-run $@
