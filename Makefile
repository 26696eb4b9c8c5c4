# make demo: from nothing to attribute accuracies; make test: the tests; make lint: the linters.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test lint clean

$(VENV)/.run: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install --editable ".[dev]"
	touch $@

data/synthetic: | $(VENV)/.run
	$(BIN)/python -m data_prep --dataset=synthetic --output_dir=data

demo: $(VENV)/.run data/synthetic
	$(BIN)/python train.py --config=configs/attributes_cnn.py --workdir=runs/demo \
	    --config.data.dir=data/synthetic $(DEMO_FLAGS)
	$(BIN)/python evaluate.py --task=attributes --workdir=runs/demo --split=test
	@echo "training curves: runs/demo/curves.png; all results: runs/demo/"

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) data/synthetic data/synthetic-raw runs/demo
