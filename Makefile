# `make` lists the targets. All is installed into .venv, nothing outside this folder; the service's data is in .streamorch.

PYTHON ?= python3
VENV := .venv/bin/python
INSTALLS := .ci/install constraints.txt setup.cfg setup.py

.DEFAULT_GOAL := help
.PHONY: help run doctor test check bench races proof real screenshots audit format lint types openapi wheel clean

help:
	@sed -n 's/^\([a-z]*\):.*## /  make \1|/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

run: .venv/installed-run ## start the service, a PostgreSQL of its own, MediaMTX if it is installed; Ctrl-C stops all, the data stays
	@$(VENV) -m streamorch run

doctor: .venv/installed-run ## find what is wrong with settings, database, service and MediaMTX, and what mends it
	@$(VENV) -m streamorch doctor

test: .venv/installed-dev ## run the tests, with coverage
	@$(VENV) -m pytest --cov --cov-report=term-missing:skip-covered

check: .venv/installed-dev ## see that format, lint and types are right
	@$(VENV) -m ruff format --check .
	@$(VENV) -m ruff check .
	@$(VENV) -m mypy

bench: .venv/installed-run ## measure the service beside an empty Flask view; CASE=… for one
	@$(VENV) -m bench --case "$(CASE)"

races: .venv/installed-dev ## every race of claims, 10,000 times each
	@$(VENV) -m tests.races

proof: .venv/installed-dev ## races, the model of the world, faults, fuzzing, the contract and mutants, for an hour or two; PART=… for one
	@$(VENV) -m tests.proof $(addprefix --part ,$(PART))

real: .venv/installed-dev ## the tests with real MediaMTX servers, MEDIAMTX_BIN=…:… (else the one on PATH), ffmpeg and WHIP
	@$(VENV) -m pip --quiet install --no-build-isolation -c constraints.txt -e '.[real]'
	@$(VENV) -m pytest -m mediamtx -p no:randomly tests/real tests/test_mediamtx_config.py

screenshots: .venv/installed-dev ## pictures of the console into docs/console, with a real MediaMTX and ffmpeg
	@$(VENV) -m tests.console.screenshots

audit: .venv/installed-dev ## ask PyPI for known flaws of what constraints.txt pins; needs its JSON API
	@$(PYTHON) -m venv .venv/audit
	@.venv/audit/bin/pip --quiet install pip-audit
	@.venv/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

format: .venv/installed-dev ## format the code, and mend what lint can mend
	@$(VENV) -m ruff format .
	@$(VENV) -m ruff check --fix .

lint: .venv/installed-dev ## lint alone
	@$(VENV) -m ruff check .

types: .venv/installed-dev ## mypy alone
	@$(VENV) -m mypy

openapi: .venv/installed-run ## write the contract to docs/openapi.json
	@$(VENV) -m streamorch openapi > docs/openapi.json

wheel: .venv/installed-run ## build a wheel into dist/
	@rm -rf build
	@$(VENV) -m pip --quiet wheel --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

clean: ## remove .venv, caches and builds (the data in .streamorch stays)
	@rm -rf .venv build dist streamorch.egg-info .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find streamorch tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed-run: $(INSTALLS)
	@$(PYTHON) .ci/install run

.venv/installed-dev: $(INSTALLS)
	@$(PYTHON) .ci/install dev
