# make install   .venv with the package, the peers of `sfg compare` and what tests need; does nothing when it is up to date
# make run       install, then the quickstart job: labels, training, samples and a report
# make test      install, then every test that this machine can run
# make test-cluster   the extra `cluster` too, then the tests that need it
# make lint      ruff, mypy and the import directions
# make bench     the measurements in tests/benchmarks, beside their peers; BENCH="--quick" for a short one

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := .venv/.installed

.PHONY: install run test test-cluster lint bench clean

install: $(STAMP)

# torch goes first and through the constraints: asked for by another package, pip may take a CUDA build of several GB.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sfg_dist needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet -c constraints.txt torch
	$(PIP) install --quiet -c constraints.txt --editable '.[test,lint]'
	touch $@

run: install
	$(BIN)/sfg run jobs/quickstart.toml

test: install
	$(BIN)/python -m pytest -m 'not cluster'

# Apart from the other tests: with Ray's agents beside them each of its nodes starts later.
test-cluster: install
	$(PIP) install --quiet -c constraints.txt --editable '.[cluster]'
	$(BIN)/python -c 'import aiohttp, opencensus, prometheus_client'  # else the tests would be skipped
	$(BIN)/python -m pytest -m cluster

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(PIP) install --quiet -c constraints.txt --editable '.[bench]'
	$(BIN)/python tests/benchmarks/run.py $(BENCH)

clean:
	rm -rf .venv build *.egg-info
