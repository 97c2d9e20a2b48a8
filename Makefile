# Two commands on a fresh machine with Python 3.11 or newer:  make demo   make test
# Everything that they download or build lies in .cache/ ; PY chooses the Python:  make test PY=python3.12

PY ?= python3
WORKERS ?= 3
BIN := .cache/venv/bin
INSTALL = $(PY) -m letta_bridge.testing.stack.install

.DEFAULT_GOAL := help
.PHONY: help python demo test test-full soak bench lint format clean

help:
	@echo "make demo       a homeserver, a real Letta, three agents and the bridge, on this machine"
	@echo "make test       the whole test suite, with the checks of make lint"
	@echo "make test-full  the same, and what is doubled for completeness"
	@echo "make soak       200 kills over 2,000 messages on both databases, about 5 minutes; SOAK=\"--seed 42\" repeats one"
	@echo "make bench      how fast it is, beside a bare appservice; BENCH=\"--quick latency\" for a first impression"
	@echo "make lint       style and types"
	@echo "make format     put the code into its style"
	@echo "make clean      remove everything that these commands made"

python:
	@command -v "$(PY)" >/dev/null 2>&1 || { \
	  echo "There is no $(PY). On Debian and Ubuntu:  apt install python3 python3-venv   (or name one: PY=...)" >&2; exit 1; }
	@"$(PY)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "letta-bridge needs Python 3.11 or newer; $(PY) is $$("$(PY)" -V 2>&1). Name another:  make $(MAKECMDGOALS) PY=python3.12" >&2; exit 1; }

demo: python
	@$(INSTALL) bridge synapse postgres letta
	@$(BIN)/python -m letta_bridge.demo

test: python
	@$(INSTALL) testing synapse postgres letta?
	@$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not full"

test-full: python
	@$(INSTALL) testing synapse postgres letta?
	@$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest

soak: python
	@$(INSTALL) testing postgres
	$(BIN)/python -m tests.crash.soak $(SOAK)

bench: python
	@$(INSTALL) testing synapse postgres letta?
	$(BIN)/python -m benchmarks $(BENCH)

lint: python
	@$(INSTALL) testing
	@$(MAKE) --no-print-directory check

.PHONY: check
check:
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: python
	@$(INSTALL) testing
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf .cache build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
