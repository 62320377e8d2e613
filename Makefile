# `make repro` runs the embedded default, `make test` the tests; both install what they need into .venv first.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup ray repro compare papers tables rehearse test test-fast lint lock doctor bench-gpu pictures image image-test clean
repro: .venv/requirements
	@git rev-parse --git-dir >/dev/null 2>&1 || dvc config --local core.no_scm true # in a downloaded archive
	dvc repro
	@python -m pipeline.report

# All losses on the embedded dataset; prints the table also when there is nothing to run.
compare: .venv/requirements
	python -m pipeline.run_grid comparison_glyphs glyphs
	python -m pipeline.tabulate comparison_glyphs
	python -m pipeline.report comparison_glyphs

# Every table of every grid: chooses all of them, so that DVC has their stages, gets the data (what a person has to fetch
# may be missing), makes all runs with one pool of workers, and lets DVC make the tables. A run that fails stops no other.
papers: .venv/requirements
	python -m pipeline.choose all
	-dvc repro --keep-going split data/dvc.yaml
	python -m pipeline.run_grid --all || [ $$? = 1 ]
	dvc repro --keep-going -P

# The tables and reports of the runs that there are, also after a failed one, which keeps DVC from making them.
tables: .venv/requirements
	for grid in $$(python -c 'from pipeline.runs.grid import known_grids; print(*known_grids())'); do \
	  python -m pipeline.tabulate $$grid && python -m pipeline.report $$grid || exit; \
	done

# The papers on look-alikes, in a scratch folder. The numbers mean nothing, and the tables say so.
REHEARSAL ?= $(shell mktemp --directory --dry-run)
rehearse: .venv/requirements .venv/tests
	python -m tests.rehearse $(REHEARSAL)

setup: .venv/requirements

# For the engine ray, on every machine of the cluster: docs/scale.md.
ray: .venv/ray

test: .venv/tests
	pytest

# The tests that show most about a change, in a minute.
FAST := architecture batches charts clustering comparison config images limits losses manifests optimiser published \
  recipes retrieval split subsets tabulate
test-fast: .venv/tests
	pytest $(FAST:%=tests/test_%.py)

lint: .venv/tests
	ruff check .
	ruff format --check .
	mypy
	hadolint Dockerfile

# What its GPU does: right, repeatable, how fast. Ten minutes at most.
bench-gpu: .venv/requirements
	python -m bench.gpu

# Whether this machine is fit.
doctor: .venv/requirements
	python -m pipeline.doctor

# README's pictures of the report; wants chromium.
pictures: .venv/tests
	dvc repro
	python -m tests.pictures

# The last commit, as a container image. More options for the build, such as another base: docs/container.md.
ENGINE ?= docker
IMAGE ?= proxy-losses
BUILD_OPTIONS ?=
image:
	$(ENGINE) build $(BUILD_OPTIONS) --build-arg VERSION="$$(git describe --tags --always)" \
	  --build-arg REVISION="$$(git rev-parse HEAD)" --tag $(IMAGE) .

# Builds and runs it for real on a Debian or Ubuntu machine without Docker, as root; docs/container.md says what is checked.
image-test: .venv/tests
	tests/image_test.sh

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 or 3.12: run make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv

# One package has no wheel: it is built with the locked setuptools, not with what pip would fetch for it unchecked.
# Bytecode is made where a module is first imported: most never are.
PIP := python -m pip install --quiet --disable-pip-version-check --require-hashes --no-compile
.venv/requirements: requirements.lock | $(BIN)/python
	awk '/^[^ ]/ { wanted = /^setuptools==/ } wanted' $< > .venv/setuptools.lock
	$(PIP) -r .venv/setuptools.lock
	$(PIP) --no-build-isolation --use-pep517 -r $<
	touch $@

.venv/ray: requirements-ray.lock .venv/requirements
	$(PIP) -r $<
	touch $@

.venv/tests: tests/requirements.lock .venv/requirements
	$(PIP) --no-build-isolation --use-pep517 -r $<
	touch $@

# Needs uv. Hashes of every file of every package, for Linux on both processors, Python 3.11 and 3.12.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header -o requirements.lock requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header -c requirements.lock -o requirements-ray.lock requirements-ray.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header -c requirements.lock -o tests/requirements.lock tests/requirements.txt

clean:
	rm -rf .venv
