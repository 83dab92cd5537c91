# Two commands matter: `make demo` (fit a photo and open it) and `make test`.
# They need Python 3.11 or later with venv, git and make; the rest is installed into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --no-input -q --use-pep517 \
          -c constraints.txt
NPM    := tools/npm.sh

BUNDLE      := acorn_svc/web/index.html
MODULES     := web/node_modules/.package-lock.json
WEB_SOURCES := $(shell find web -name node_modules -prune -o -type f -print 2>/dev/null)
BUILD_FILES := pyproject.toml constraints.txt $(wildcard cuda_ext/*)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format types web web-test unit torture wheel benchmark docker clean

help:  ## List the commands
	@sed -n 's/^\([a-z-]*\):.*##/  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(STAMPS)/demo $(BUNDLE)  ## Fit a photo before your eyes and open it in the browser
	$(BIN)/acorn demo

test: lint types web-test unit  ## Run everything that must pass: linters, types, all tests

lint: $(STAMPS)/test  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMPS)/test  ## Put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMPS)/test  ## Check types and the direction of imports
	$(BIN)/mypy
	$(BIN)/lint-imports

web: $(BUNDLE)  ## Build the page

web-test: $(BUNDLE)  ## Check and test the page
	$(NPM) run --silent typecheck
	$(NPM) run --silent test

unit: $(STAMPS)/test $(BUNDLE)  ## Run the Python tests
	$(BIN)/python -m pytest -n auto --dist loadfile

torture: $(STAMPS)/test $(BUNDLE)  ## Kill, cut, fill and flood what promises to bear it; takes hours
	ACORN_TORTURE=1 $(BIN)/python -m pytest -m torture $(ARGS)

wheel: $(STAMPS)/python $(BUNDLE)  ## Build dist/acorn_svc-*.whl, page included
	$(BIN)/python -m pip wheel --no-input -q --no-deps -w dist .

benchmark: $(STAMPS)/test  ## Measure, and write benchmarks/results/<version>.tsv
	$(BIN)/python -m benchmarks $(ARGS)

docker:  ## Build the container image with Docker
	docker build -t acorn .

clean:  ## Remove what was built and installed
	rm -rf $(VENV) build dist acorn_svc/web web/node_modules

$(STAMPS)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Acorn needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Choose another with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "==> Creating the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "Python's venv module is missing (Debian and Ubuntu: apt install python3-venv)." >&2; \
	  exit 1; }
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/demo: $(STAMPS)/python $(BUILD_FILES)
	@echo "==> Installing Acorn and its libraries (PyTorch is large: the first time takes minutes)"
	@$(PIP) -e '.[demo]'
	@touch $@

$(STAMPS)/test: $(STAMPS)/python $(BUILD_FILES)
	@echo "==> Installing Acorn, its libraries and the test tools (the first time takes minutes)"
	@$(PIP) -e '.[demo,test]'
	@$(PIP) --no-deps --upgrade --target $(VENV)/share/iiif-validator iiif-validator==1.0.5
	@touch $@ $(STAMPS)/demo

$(MODULES): web/package.json web/package-lock.json | $(STAMPS)/python
	@echo "==> Installing the libraries of the page"
	@$(NPM) ci --no-audit --no-fund --loglevel=error
	@touch $@

$(BUNDLE): $(MODULES) $(WEB_SOURCES)
	@echo "==> Building the page"
	@$(NPM) run --silent build
	@touch $@
