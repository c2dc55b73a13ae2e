# Everything runs in a virtual environment in the checkout; nothing else on the machine is touched.
#   make demo       from a pretrained model to a rush on a page (13 to 15 minutes; DEMO=small: about 5)
#   make test       the tests, the real TorchServe among them; under 10 minutes on 2 cores
#   make test-slow  the tests that take longer; under 20 minutes on 2 cores
#   make lint       style and types of all four packages
#   make docs       the documentation as a site in site/; broken links are errors
#   make bench      engines, overhead and the policy study in a short form; under 20 minutes on 2 cores
#   make soak       ten minutes of rushes against the demo's archive; does anything grow?
#   make env        the environment alone; then `. ./env.sh`

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
EXTRAS := train,serve,ray,bench,onnx,demo,dev,docs
DEMO ?= full
TEST_PROCESSES ?= 2
ENV := . ./env.sh &&
SMALL := demo/small
.DEFAULT_GOAL := help
.PHONY: help env demo test test-slow soak lint format docs bench wheel clean

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

# Tests that depend on how fast the real TorchServe answers run alone, the others side by side.
test: env.sh
	@$(ENV) python -m pytest -m "not slow and not end_to_end" --numprocesses $(TEST_PROCESSES) --dist loadfile
	@$(ENV) python -m pytest -m "not slow and end_to_end"

test-slow: env.sh
	@$(ENV) python -m pytest -m "slow and not end_to_end" --numprocesses $(TEST_PROCESSES) --dist loadfile
	@$(ENV) python -m pytest -m "slow and end_to_end"

$(SMALL)/store/demo.mar: env.sh
	@$(ENV) elasticlm demo --size small

soak: env.sh
	@$(ENV) { test -f demo/$(DEMO)/store/demo.mar || elasticlm demo --size $(DEMO); }
	@$(ENV) elasticlm soak --archive demo/$(DEMO)/store/demo.mar --output out/soak --overwrite

bench: $(SMALL)/store/demo.mar
	@$(ENV) elasticlm export --model $(SMALL)/aligned --onnx fp32 int8 --data pydoc:1000
	@$(ENV) { elasticlm engines --model $(SMALL)/aligned --quick --output out/bench/engines --overwrite || { status=$$?; \
	    test $$status -eq 1 || exit $$status; echo "engines: a gate failed, see out/bench/engines/engines.json"; }; }
	@$(ENV) elasticlm overhead --archive $(SMALL)/store/demo.mar --requests 50 --output out/bench/overhead --overwrite
	@$(ENV) elasticlm policies --archive $(SMALL)/store/demo.mar --tokens 128 --arrivals poisson:10 gamma:10,4 \
	    --load 0.6 --output out/bench/policies --overwrite

lint: env.sh
	@$(ENV) ruff check . && ruff format --check . && python typing_tree.py && mypy

format: env.sh
	@$(ENV) ruff check --fix . && ruff format .

docs: env.sh
	@$(ENV) NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet && echo "Open site/index.html"

wheel: env.sh
	@$(ENV) python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
