# The first two lines of the README: `make demo` and `make test`. Both set up what they need.

PYTHON ?= python3
BIN := .venv/bin
ENGINE ?= real
PROFILE ?= directory

.PHONY: demo test check lint types format engines bench azurite lock clean help

help: ## what there is to make
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: .venv/.ready ## the main job, end to end, with real engines (ENGINE=none: without them; PROFILE=hybrid: with S3 and MLflow)
	$(if $(filter real,$(ENGINE)),$(BIN)/python tools/engines.py all)
	$(if $(filter hybrid,$(PROFILE)),$(BIN)/python tools/engines.py mlflow)
	$(BIN)/python demo/run.py --engine $(ENGINE) --profile $(PROFILE)

test: .venv/.ready ## every test, those with real LLaMA-Factory and vLLM included
	$(BIN)/python tools/engines.py all
	$(BIN)/python tools/run_tests.py

check: .venv/.ready lint types ## the fast loop: lint, types, layers, tests without engines
	$(BIN)/python -m pytest tests -m "not engine and not slow" -n 4 --dist worksteal --hypothesis-profile fast

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

bench: .venv/.ready .bench/tools/.ready ## speed, beside the tools one would use instead (ONLY=cold-pull,links RUNS=5 KEEP=1: into docs/)
	$(BIN)/python -m compileall -q src
	$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY)) $(if $(RUNS),--runs $(RUNS)) $(if $(KEEP),--keep)

azurite: .venv/.ready ## Azure's emulator (.azurite/, 350 MB), without which the tests of az:// are skipped
	$(BIN)/python tools/azurite.py

lock: .venv/.ready ## the pinned requirements, resolved anew
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --group dev pyproject.toml \
		--generate-hashes --custom-compile-command "make lock" --output-file requirements/dev.txt
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		requirements/bench-tools.in --generate-hashes --custom-compile-command "make lock" \
		--output-file requirements/bench-tools.txt
	$(BIN)/python tools/engines.py lock

clean: ## everything that was set up, gone
	rm -rf .venv .engines .azurite .demo .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/.ready: requirements/dev.txt pyproject.toml tools/environment.py
	$(PYTHON) tools/environment.py

.bench/tools/.ready: .venv/.ready requirements/bench-tools.txt
	$(BIN)/python -m venv --clear .bench/tools
	.bench/tools/bin/python -m pip install --quiet --quiet --disable-pip-version-check --require-hashes \
		--requirement requirements/bench-tools.txt
	touch $@
