# make install      .venv with the package, the peers of `sfg compare` and what tests need; does nothing when it is up to date
#                   TORCH=cpu or default: torch's build; TORCH_INDEX=URL: an index with other builds; INSTALLER=pip or uv
# make run          install, then the quickstart job: labels, training, samples and a report
# make check        install, lint, and the tests that take no time and no Ray: before a commit
# make test         install, then what any machine can run in minutes
# make test-all     all tests: the long ones, Slurm, hosts, browser, notebooks, chaos, comparisons, packaging and the
#                   cluster's too, and `make docs`
# make test-cluster the extra `cluster` too, then the tests that need it
# make lint         ruff, mypy and the import directions
# make planted      whether the tests catch the faults of tests/planted.py; TIER="..." for markers
# make docs         the guide as a site in build/site; a broken link or a page that is not listed fails
# make bench        the measurements in tests/benchmarks, beside their peers; BENCH="--quick" for a short one
# make constraints  constraints.txt anew from pyproject.toml; UPGRADE=--upgrade takes the newest versions

PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(PYTHON) install.py --torch "$(TORCH)" --torch-index "$(TORCH_INDEX)" --installer "$(INSTALLER)"

PYTEST = $(BIN)/python -m pytest -q --maxprocesses 4 --dist loadgroup --no-loadscope-reorder
# One worker more than cores where tests wait for Ray and other processes; with two, some that go by the clock fail.
MORE = $$(($$(getconf _NPROCESSORS_ONLN) + 1))
# All extras but ctgan, which would hold pandas back for everybody.
PINNED_EXTRAS = h5 docs onnx cluster compare forestdiffusion notebooks bench test lint
APART = slurm or hosts or chaos or alone
BEYOND = $(APART) or browser or notebooks or comparison or packaging or cluster

# Tests start hundreds of processes: each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install run check quick-tests test test-all test-cluster lint planted docs bench constraints clean

install:
	@$(INSTALL) test lint

run: install
	$(BIN)/sfg run jobs/quickstart.toml

check: install
	@$(MAKE) --no-print-directory -j2 lint quick-tests

# Beside the lint, which on a fresh checkout takes as long on one core.
quick-tests: install
	HYPOTHESIS_PROFILE=check $(PYTEST) -n auto -m 'not ($(BEYOND) or slow or long or ray)'

test: install
	$(PYTEST) -n $(MORE) -m 'not ($(BEYOND) or long)'

# What starts clusters and goes by the clock comes after what keeps the machine busy.
test-all: install
	HYPOTHESIS_PROFILE=full $(PYTEST) -n $(MORE) -m 'not ($(APART) or cluster)'
	$(PYTEST) -n $(MORE) -m '($(APART)) and not cluster'
	$(MAKE) test-cluster
	$(MAKE) docs

# Apart from the other tests: with Ray's agents beside them each of its nodes starts later.
test-cluster: install
	@$(INSTALL) cluster
	$(BIN)/python -c 'import aiohttp, opencensus, prometheus_client'  # else the tests would be skipped
	$(BIN)/python -m pytest -m cluster

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

planted: install
	$(BIN)/python tests/planted.py $(if $(TIER),--markers '$(TIER)')

docs: install
	@$(INSTALL) docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

bench: install
	@$(INSTALL) bench
	$(BIN)/python tests/benchmarks/run.py $(BENCH)

# One file for every platform and Python; what the file pins already stays as long as it fits.
# It needs uv alone, not an installation, which pins that no longer fit would not allow.
constraints:
	PATH="$$PATH:$(BIN)" uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 \
		$(addprefix --extra ,$(PINNED_EXTRAS)) \
		--custom-compile-command "make constraints" --no-annotate --output-file constraints.txt $(UPGRADE) pyproject.toml

clean:
	rm -rf .venv build *.egg-info
