# Everything runs in a virtual environment in the checkout; nothing else on the machine is touched.
#   make demo    from a pretrained model to a rush on a page (about 15 minutes; DEMO=small: under 4)
#   make test    all tests, the real TorchServe among them
#   make soak    ten minutes of rushes against the demo's archive; does anything grow?
#   make env     the environment alone; then `. ./env.sh`

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
EXTRAS := retrieval,train,serve,bench,onnx,demo,dev
DEMO ?= full
ENV := . ./env.sh &&
.DEFAULT_GOAL := help
.PHONY: help env demo test soak lint format bench wheel clean

help:
	@sed -n 's/^#   //p' Makefile

env: env.sh

$(VENV)/installed: setup.cfg constraints.txt
	@echo "Installing into $(VENV) (a minute or two; pinned in constraints.txt)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=...") if sys.version_info < (3, 11) else None'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

env.sh: $(VENV)/installed environment.sh
	@sed "s|^ELASTICLM_ROOT=.*|ELASTICLM_ROOT='$(CURDIR)'|" environment.sh > $@
	@echo "Activate the environment with: . ./env.sh"

demo: env.sh
	@$(ENV) elasticlm demo --size $(DEMO)

test: env.sh
	@$(ENV) python -m pytest

soak: env.sh
	@$(ENV) { test -f demo/$(DEMO)/store/demo.mar || elasticlm demo --size $(DEMO); }
	@$(ENV) elasticlm soak --archive demo/$(DEMO)/store/demo.mar --output out/soak --overwrite

lint: env.sh
	@$(ENV) ruff check . && ruff format --check . && mypy

format: env.sh
	@$(ENV) ruff check --fix . && ruff format .

wheel: env.sh
	@$(ENV) python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
