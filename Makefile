# `make` says what there is. A target first installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# pip compiles no modules here, so Python has to keep what it compiles: without that each process starts seconds later.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help repro compare claims papers tables rehearse setup ray test test-fast lint bench-gpu doctor pictures site image image-test lock clean
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'python -m pipeline lists the commands. Where to begin: README.md'

repro: .venv/requirements ## the embedded default, from its fonts to the table: minutes
	@git rev-parse --git-dir >/dev/null 2>&1 || dvc config --local core.no_scm true # in a downloaded archive
	dvc repro
	@python -m pipeline.tabulate default # which DVC leaves out, and does not print, if the committed table is already right
	@python -m pipeline.report
	@! git rev-parse --git-dir >/dev/null 2>&1 || python -m pipeline.verify default || true

# All losses on the embedded dataset, with a search. The table is printed even if there is nothing to run.
compare: .venv/requirements ## 16 losses on the embedded dataset, 12 tries each: an hour
	python -m pipeline.run_grid comparison_glyphs glyphs
	python -m pipeline.tabulate comparison_glyphs
	python -m pipeline.report comparison_glyphs

# The papers' claims, tried on the embedded dataset. The table is printed even if there is nothing to run.
claims: .venv/requirements ## the papers' claims, tried on the embedded dataset: ten minutes
	dvc repro subsets
	python -m pipeline.run_grid claims glyphs
	python -m pipeline.tabulate claims
	python -m pipeline.report claims

# Every table of every grid. Chooses all grids, so that DVC has their stages; gets the data (files that a person has to
# fetch may be missing); makes all runs with one pool of workers; and lets DVC make the tables. If a run fails, the others
# go on.
papers: .venv/requirements ## every table of every grid: days on a GPU
	python -m pipeline.choose all
	-dvc repro --keep-going split data/dvc.yaml
	python -m pipeline.run_grid --all || [ $$? = 1 ]
	dvc repro --keep-going -P

# The tables and reports of the existing runs. This works even after a failed run, when DVC does not make them.
tables: .venv/requirements ## the tables and reports of the runs that there are
	for grid in $$(python -c 'from pipeline.runs.grid import known_grids; print(*known_grids())'); do \
	  python -m pipeline.tabulate $$grid && python -m pipeline.report $$grid || exit; \
	done

# The papers on look-alike datasets, in a scratch folder. The numbers mean nothing, and the tables say so.
REHEARSAL ?= $(shell mktemp --directory --dry-run)
rehearse: .venv/requirements .venv/tests ## the papers, small, on look-alike archives
	python -m tests.rehearse $(REHEARSAL)

setup: .venv/requirements ## only the environment .venv

# Installs what the engine ray needs. Run it on every machine of the cluster: docs/scale.md.
ray: .venv/ray ## also what the engine ray needs, on every machine of a cluster

test: .venv/tests ## the tests
	pytest

# The tests that show most about a change. They take a minute.
FAST := architecture batches charts clustering comparison config images limits losses manifests optimiser published \
  recipes retrieval split subsets tabulate
test-fast: .venv/tests ## the tests that show most about a change: a minute
	pytest $(FAST:%=tests/test_%.py)

lint: .venv/tests ## ruff, mypy and hadolint
	ruff check .
	ruff format --check .
	mypy
	hadolint Dockerfile

# Checks and measures the GPU of this machine: is it right, is it repeatable, how fast is it? Takes at most ten minutes.
bench-gpu: .venv/requirements ## is this GPU right, repeatable and fast? At most ten minutes
	python -m bench.gpu

# Checks whether this machine is fit for the pipeline.
doctor: .venv/requirements ## is this machine fit for the pipeline?
	python -m pipeline.doctor

# Makes the pictures of the report for README. Needs chromium.
pictures: .venv/tests ## README's pictures, with chromium
	dvc repro
	python -m tests.pictures

# README, pages, tables and reports in site/html: open site/html/index.html, or put the folder on a server.
site: .venv/tests ## all pages, tables and reports as one site, with a search
	python -m tests.site site

# Builds a container image of the last commit. For more options, such as another base image: docs/container.md.
ENGINE ?= docker
IMAGE ?= proxy-losses
BUILD_OPTIONS ?=
image: ## the container image of the last commit
	$(ENGINE) build $(BUILD_OPTIONS) --build-arg VERSION="$$(git describe --tags --always)" \
	  --build-arg REVISION="$$(git rev-parse HEAD)" --tag $(IMAGE) .

# Builds and runs the image on a Debian or Ubuntu machine without Docker, as root. docs/container.md says what is checked.
image-test: .venv/tests ## builds and runs the image without Docker, as root
	tests/image_test.sh

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 or 3.12: run make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv

# One package has no wheel. It is built with the locked setuptools, not with the unchecked one that pip would fetch.
# Bytecode is not compiled at installation, but when a module is first imported, because most modules never are.
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

# Needs uv. Locks the hashes of every file of every package, for Linux on both processors and Python 3.11 and 3.12.
lock: ## locks the hashes of all packages, with uv
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header -o requirements.lock requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header -c requirements.lock -o requirements-ray.lock requirements-ray.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header -c requirements.lock -o tests/requirements.lock tests/requirements.txt

clean: ## removes .venv
	rm -rf .venv
