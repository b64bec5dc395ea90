# `make quickstart` shows the whole loop on the toy model; `make test` runs lint, types and tests.
# Both make .venv from nothing first. On Windows see docs/windows.md.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# llama.cpp is compiled for this very processor, but without AMX (server processors): GCC 12 gets it
# wrong, and a prompt can end in a crash.
NO_AMX := $(shell echo | $(or $(CXX),c++) -mno-amx-int8 -E -x c++ - >/dev/null 2>&1 && echo -mno-amx-int8)
export CMAKE_ARGS ?= $(if $(NO_AMX),-DCMAKE_C_FLAGS=$(NO_AMX) -DCMAKE_CXX_FLAGS=$(NO_AMX))

.PHONY: quickstart test lint types tests prove bench docs clean

quickstart: $(VENV)/.all
	$(BIN)/rig quickstart

test: lint types tests

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python docs/reference.py --check

types: $(VENV)/.dev
	$(BIN)/mypy

tests: $(VENV)/.dev
	$(BIN)/pytest -n 2 --dist loadfile

# The full-length proofs: hundreds of kills, a thousand slots. Half an hour or more.
prove: $(VENV)/.dev
	$(BIN)/pytest -m slow --timeout 3600

# The benchmarks that need neither a GPU nor a file; the others are in docs/benchmarks.md.
bench: $(VENV)/.dev
	for name in daemon_memory eval_speed learn_packed summarise train_step; do \
		echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

# Renew docs/reference/ from the help texts and the keys of the configuration.
docs: $(VENV)/.dev
	$(BIN)/python docs/reference.py

# torch first and alone: on a machine without a card pip may then take a CPU build, and nothing
# after it asks for another one.
$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) $$(grep '^torch==' constraints.txt)
	touch $@

$(VENV)/.all: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[all]'
	touch $@

$(VENV)/.dev: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.all

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
