# Needs make and a Python of 3.11 or newer with venv. Everything is installed into .venv.
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help install lint format test test-slow test-gpu check docs linkcheck demo hooks constraints audit sbom \
        release-check clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv and install the pinned packages into it (2.6 GB with a CPU build of torch, a few minutes)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "xtransplant needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=<path> install")'
	@echo "Installing into .venv: 2.6 GB with a CPU build of torch, several more with a CUDA build; a few minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

lint: install  ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## repair style and formatting where it can be done automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: install  ## the fast tests (WORKERS=2, ARGS='-k engine')
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: install  ## the tests marked slow
	$(TEST_ENV) $(BIN)/python -m pytest -m slow $(ARGS)

test-gpu: install  ## the engine and the sweep against plain forwards, on a CUDA GPU
	XTRANSPLANT_TEST_DEVICE=cuda $(TEST_ENV) $(BIN)/python -m pytest tests/equivalence $(ARGS)

check: lint docs test  ## what to run before a push

docs: install  ## the documentation site, in build/docs; a warning or a broken link is an error; no network
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs build/docs
	@echo "build/docs/index.html"

linkcheck: docs  ## the site's links to other sites too: needs a network
	$(BIN)/python -m sphinx -b linkcheck -W --keep-going -q docs build/linkcheck

# Every layer pair on some documents of two languages; the best pair for both; that pair on documents not looked at.
demo: install  ## Gemma 3 270M: grid over all layer pairs, selection, test on unseen documents, report (about 5 minutes)
	$(BIN)/xtransplant grid -m task=cldr_language language_pair=en-de,en-zh limit=14 output_dir=outputs/demo
	$(BIN)/xtransplant select grid=outputs/demo/grid strategy=overall pooled=true output_dir=outputs/demo
	$(BIN)/xtransplant evaluate -m task=cldr_language split=unseen language_pair=en-de,en-zh \
	    'selection=null,outputs/demo/select/*/selection.json' output_dir=outputs/demo
	@echo
	$(BIN)/xtransplant summarize 'runs=[outputs/demo]'
	@echo
	$(BIN)/xtransplant report runs=outputs/demo output=outputs/demo/report.html overwrite=true

AUDIT := build/audit

$(AUDIT)/.installed: .ci/audit-requirements.txt
	@test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

audit: $(AUDIT)/.installed  ## look the pinned packages up among known vulnerabilities (needs PyPI's JSON API)
	@$(AUDIT)/bin/python .ci/audit.py

sbom: install $(AUDIT)/.installed  ## what is installed, as a CycloneDX bill of materials: build/sbom.json
	@$(AUDIT)/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml -o build/sbom.json $(BIN)/python
	@echo build/sbom.json

hooks: install  ## have git run the lint before each commit
	$(BIN)/pre-commit install

# torch stays at its pin: the newest release may come as a CUDA build of several GB. To move it, edit that line first.
constraints:  ## pin anew: the newest set that pyproject.toml allows, from a fresh environment
	@set -e; env=$$(mktemp -d); trap 'rm -rf "$$env"' EXIT; \
	grep '^torch==' constraints.txt > "$$env/torch.txt"; \
	$(PYTHON) -m venv "$$env/venv"; \
	"$$env/venv/bin/pip" install --quiet --disable-pip-version-check -c "$$env/torch.txt" -e '.[dev]'; \
	"$$env/venv/bin/pip" freeze --all --exclude-editable > "$$env/frozen.txt"; \
	grep -v '^pip==' "$$env/frozen.txt" | sed 's/+[a-z0-9.]*$$//' > constraints.txt

# What is checked is the files of dist/, in a folder of their own: the wheel in a fresh environment, the tests from the
# unpacked source distribution, which installs its own. Built from a fresh clone: setuptools would take up what an earlier
# build left here. Nothing is uploaded.
release-check: install  ## build sdist and wheel, install the wheel anew and run it, pass the tests from the sdist (20 minutes)
	@test -z "$$(git status --porcelain)" || { echo "Not everything is committed: git status says what."; exit 2; }
	@set -e; root=$$(mktemp -d); trap 'rm -rf "$$root"' EXIT; rm -rf dist; \
	git clone --quiet . "$$root/source"; \
	$(BIN)/python -m build --no-isolation --outdir dist "$$root/source" > "$$root/build.log" 2>&1 || { cat "$$root/build.log"; exit 1; }; \
	echo "The wheel, in a fresh environment"; \
	$(PYTHON) -m venv "$$root/venv"; \
	"$$root/venv/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl; \
	(cd "$$root" && venv/bin/xtransplant --version && \
	    venv/bin/xtransplant evaluate task=cldr_language language_pair=en-sw limit=4 'transplant.layers=[13,2]'); \
	echo "The tests, from the source distribution"; \
	tar -xzf dist/*.tar.gz -C "$$root"; \
	$(MAKE) -C "$$root"/xtransplant-* lint docs test PYTHON=$(PYTHON) WORKERS=$(WORKERS) ARGS='$(ARGS)'
	@echo; ls -l dist

clean:  ## remove .venv, caches and build leftovers; runs in outputs/ stay
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
