# One command each; all of them work from a fresh clone with Python 3.11+, make and a package index.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
UV := .venv-tools/bin/uv
BIN := .venv/bin
# Cached packages are linked where that is possible; never fetch an interpreter.
export UV_PYTHON_DOWNLOADS := never
export UV_LINK_MODE ?= copy

.PHONY: help dev run demo test lint fmt protos bench bench-audit bench-keys bench-access soak-rotation models vault fuzz clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | awk -F':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv .venv-tools
	@.venv-tools/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9

.venv/.synced: pyproject.toml uv.lock | $(UV)
	@echo "installing into .venv"
	@$(UV) sync --quiet --frozen --compile-bytecode --python $(PYTHON)
	@touch $@

dev: .venv/.synced ## set up .venv and nothing else

run: dev ## start everything, run the demonstration, leave it up until Ctrl-C
	@$(BIN)/sealward demo --dir ./sealward-data --keep

demo: dev ## the same demonstration, then stop
	@$(BIN)/sealward demo

test: dev ## the whole default test suite
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: dev ## formatting, rules, types, imports, protos, spelling, README
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/buf lint
	@$(BIN)/buf breaking --against protos/baseline.binpb
	@$(BIN)/codespell sealward services tools tests benchmarks docs protos *.md
	@$(BIN)/python tools/check_readme.py
	@$(BIN)/python tools/gen_reference.py --check
	@UV_PROJECT_ENVIRONMENT=.venv-codegen $(UV) sync --quiet --frozen --only-group codegen
	@.venv-codegen/bin/python tools/codegen.py --check

fmt: dev ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

protos: dev ## regenerate sealward/api from protos/
	@UV_PROJECT_ENVIRONMENT=.venv-codegen $(UV) sync --quiet --frozen --only-group codegen
	@.venv-codegen/bin/python tools/codegen.py

vault: dev ## run a real Vault server for development, set up for a suite
	@$(BIN)/python -m tools.vault_dev

soak-rotation: dev ## rotate keys, certificates and authority 20 times under load
	@$(BIN)/python -m benchmarks.soak --rounds 20

models: dev ## rebuild the shipped models and check that they are the committed ones
	@UV_PROJECT_ENVIRONMENT=.venv-models $(UV) sync --quiet --frozen --only-group models
	@.venv-models/bin/python tools/build_models.py --check

bench: dev ## benchmarks, side by side in one run: the suite, the audit log, keys, access
	@$(BIN)/python -m benchmarks
	@$(BIN)/python -m benchmarks.audit
	@$(BIN)/python -m benchmarks.keys
	@$(BIN)/python -m benchmarks.access

bench-audit: dev ## those of the audit log alone
	@$(BIN)/python -m benchmarks.audit

bench-keys: dev ## those of sealing, the keys service and mutual TLS alone
	@$(BIN)/python -m benchmarks.keys

bench-access: dev ## those of decisions, logins beside predictions and revocations alone
	@$(BIN)/python -m benchmarks.access

fuzz: dev ## every decoder guided by coverage: FUZZ_SECONDS for each of FUZZ_TARGETS
	@UV_PROJECT_ENVIRONMENT=.venv-fuzz $(UV) sync --quiet --frozen --no-default-groups --group fuzz
	@.venv-fuzz/bin/python -m tests.fuzz.guided $(FUZZ_TARGETS) --seconds $(or $(FUZZ_SECONDS),30)

clean: ## remove what make made
	@rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis dist demo-data .fuzz vault-data
