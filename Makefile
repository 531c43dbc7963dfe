# demo: set everything up and run the main job.  test: set everything up and pass the tests.
# check: style, types, the house's import contracts, quoted numbers.  bench: measure again.  docs: build the book.
# eval: judge the diagnoses of incidents whose cause is known (the public ones where the data is).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
MIDWATCH_DATA ?= ../shared/data
EVAL_COUNT    ?= 400
PUBLIC := $(if $(wildcard $(MIDWATCH_DATA)/incidents/index.jsonl),incidents)

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo test check bench eval docs clean

help:
	@echo "make demo    set up, start the watch, replay twelve recorded incidents (ONCE=1 ends it afterwards)"
	@echo "make test    set up and run the tests"
	@echo "make check   style, types, import contracts, quoted numbers"
	@echo "make bench   measure again and rewrite results/"
	@echo "make eval    judge the diagnoses and rewrite results/triage/ (ABLATION=1 judges without each part too)"
	@echo "make docs    build the documentation into site/"

setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt torch==2.13.0
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt $(VENV)/.ready
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: START := $(shell date +%s)
demo: setup
	$(BIN)/midwatch models pull
	$(BIN)/python demo/run.py --started $(START) $(if $(ONCE),--once)

test: setup-dev
	$(BIN)/midwatch models pull
	$(BIN)/python -m pytest

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/quote.py --check
	$(BIN)/python scripts/reference.py --check

bench: setup-dev
	$(BIN)/python bench/all.py

eval: setup-dev
	$(BIN)/midwatch models pull
	$(BIN)/midwatch eval triage foundry-seeds foundry-programs $(PUBLIC) --count $(EVAL_COUNT) \
	  --data $(MIDWATCH_DATA) $(if $(ABLATION),--column rules --column local --ablation)
	cp results/triage/eval-foundry-programs-*.svg docs/images/
	$(BIN)/python scripts/quote.py

docs: setup-dev
	$(BIN)/zensical build --strict

clean:
	rm -rf $(VENV) site .demo
