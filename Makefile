# Two commands do it all on a machine with git, make and Python 3.11+ (with venv): `make demo` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

.PHONY: help install demo check fix test bench soak clean

help: ## what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

# The stamp is newer than what it was made from, so that a second run installs nothing.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "apothic needs Python 3.11 or newer; $(PYTHON) is older: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@

install: $(VENV)/installed ## make the virtual environment

demo: install ## the main job: deploy, map over real files, re-attach, look
	$(BIN)/python examples/stdlib_survey/demo.py

check: install ## lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/deptry src

fix: install ## format, and mend what can be mended by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: install ## every test; storms in their short form
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

bench: install ## measure, beside named floors, in one run
	$(BIN)/python -m bench

soak: install ## the storms in full, each with its seed; see tests/chaos
	$(BIN)/python -m pytest -m soak -o timeout=0 -s tests

clean: ## remove what was made here
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
