# The first two lines of the README: `make demo` and `make test`. Both set up what they need.

PYTHON ?= python3
BIN := .venv/bin
ENGINE ?= real

.PHONY: demo test check lint types format engines bench lock clean help

help: ## what there is to make
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: .venv/.ready ## the main job, end to end, with real engines (ENGINE=none: without them, in under a minute)
	$(if $(filter real,$(ENGINE)),$(BIN)/python tools/engines.py all)
	$(BIN)/python demo/run.py --engine $(ENGINE)

test: .venv/.ready ## every test, those with real LLaMA-Factory and vLLM included
	$(BIN)/python tools/engines.py all
	$(BIN)/python -m pytest tests

check: .venv/.ready lint types ## the fast loop: lint, types, layers, tests without engines
	$(BIN)/python -m pytest tests -m "not engine and not slow" -n auto --maxprocesses 4 --dist loadgroup --hypothesis-profile fast

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.ready
	$(BIN)/mypy

format: .venv/.ready ## what lint would complain about, mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

engines: .venv/.ready ## the environments of LLaMA-Factory, vLLM and MLflow (.engines/)
	$(BIN)/python tools/engines.py all

bench: .venv/.ready ## publish and pull against the tools one would use instead
	$(BIN)/python bench/transfer.py

lock: .venv/.ready ## the pinned requirements, resolved anew
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --group dev pyproject.toml \
		--generate-hashes --custom-compile-command "make lock" --output-file requirements/dev.txt
	$(BIN)/python tools/engines.py lock

clean: ## everything that was set up, gone
	rm -rf .venv .engines .demo .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/.ready: requirements/dev.txt pyproject.toml tools/environment.py
	$(PYTHON) tools/environment.py
