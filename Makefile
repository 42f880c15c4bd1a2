# Two commands do it all on a machine with git, make and Python 3.11+ (with venv): `make demo` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2
PEERS  ?= ray,celery,taskiq,dbos,pgqueuer
SUDO   := $(if $(filter 0,$(shell id -u)),,sudo -n)

.PHONY: help install chromium cpython-tests demo demo-stream check fix test bench scale soak clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# The stamp is newer than what it was made from, so that a second run installs nothing.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "apothic needs Python 3.11 or newer; $(PYTHON) is older: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@# It names a greenlet older than playwright's, and uses none.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'httpbin>=0.10'
	@touch $@

install: $(VENV)/installed ## make the virtual environment

demo: install ## the main job: deploy, map over real files, re-attach, look
	$(BIN)/python examples/stdlib_survey/demo.py

demo-stream: install ## a stream that survives kill -9 of its reader and of its server
	$(BIN)/python examples/token_stream/demo.py

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

# A browser reads streams in the tests. It comes from the system; where that may not be installed, its tests say so.
chromium:
	@command -v chromium >/dev/null || { \
		echo "installing chromium for the browser's tests" && \
		$(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	} || echo "LEFT OUT: there is no chromium here and it cannot be installed, so the browser's tests will not run" >&2

# CPython's own tests run against the executor. Not every Python comes with them; Debian has those of its versions.
cpython-tests: install
	@version=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	$(BIN)/python -c 'import test.test_concurrent_futures' 2>/dev/null \
	|| ls -d /usr/lib/python$$version/test/test_concurrent_futures* >/dev/null 2>&1 || { \
		echo "installing CPython's tests for $$version" && \
		$(SUDO) apt-get update -qq && \
		$(SUDO) apt-get install -y -qq --no-install-recommends libpython$$version-testsuite >/dev/null; \
	} || echo "LEFT OUT: CPython's tests are not here and cannot be installed, so they will not run on the executor" >&2

test: install chromium cpython-tests ## every test; storms in their short form
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

bench: install ## measure, beside named floors and peers, in one run; PEERS= for floors alone
	$(BIN)/python -m bench --peers "$(PEERS)"

scale: install ## measure what grows with jobs, streams and apps: some ten minutes, 2 GB of disk
	$(BIN)/python -m bench.scale

soak: install ## the storms in full, each with its seed; see tests/chaos
	$(BIN)/python -m pytest -m soak -o timeout=0 -s tests

clean: ## remove what was made here
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
