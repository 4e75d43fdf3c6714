# Everything a fresh machine needs is installed into .venv by these targets; uv is used where it is there, pip otherwise.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
UV     := $(shell command -v uv 2>/dev/null)
# The tests start processes of their own and mostly wait for them: three files at a time, also on two cores. Those that take
# long come first, and in the order in which they are named, so that none of them is left over for the end.
PYTEST ?= $(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo stack test bench generate capabilities lint docs clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## See one request and every job in the terminal: no Docker, no Go, under two minutes
	@$(BIN)/otel-kit demo

stack: $(VENV)/.demo ## Start collector, Tempo, Prometheus, Loki (and Grafana with Docker); built once where there is no engine
	@$(BIN)/otel-kit stack up

test: $(VENV)/.dev ## All tests, on real servers; needs Go or Docker for the stack, and builds it when it is missing
	@$(BIN)/otel-kit stack build
	@$(BIN)/python -m tests.frameworks.arq_environment
	@$(PYTEST) tests/frameworks tests/stack tests/integration tests/unit

bench: $(VENV)/.dev ## What our instrumentation costs: bare, upstream's, ours, in turn
	@$(BIN)/python -m benchmarks

generate: $(VENV)/.dev ## Write grafana/ and the reference pages anew; the result is committed
	@$(BIN)/python -m otel_kit.dashboards.generate
	@$(BIN)/python docs/generate.py

capabilities: $(VENV)/.dev ## Run the suite over all frameworks, and write what it has seen for docs/frameworks/
	@$(BIN)/python -m tests.frameworks.arq_environment
	@$(PYTEST) tests/frameworks --write-capabilities
	@$(BIN)/python docs/generate.py

docs: generate ## The reference pages in docs/

lint: $(VENV)/.dev ## Formatting, lint, types, directions of imports
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

clean: ## Remove .venv and caches; data and builds of the stack stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# A stamp for each set of extras, so that a second run installs nothing.
$(VENV)/.demo: pyproject.toml | $(VENV)
	@$(call install,demo)

$(VENV)/.dev: pyproject.toml | $(VENV)
	@$(call install,dev)

$(VENV):
	@$(if $(UV),$(UV) venv --quiet --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))

define install
echo "Installing otel-kit[$(1)] into $(VENV) (once)"
$(if $(UV),$(UV) pip install --quiet --python $(BIN)/python -e '.[$(1)]',$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(1)]')
touch $(VENV)/.$(1)
endef
