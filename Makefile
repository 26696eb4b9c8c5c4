# make demo: from nothing to attribute accuracies; make test: the tests; make lint: the linters.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet

# half the usual resolution and few epochs: minutes on two cores
DEMO_DATA = data/demo/synthetic
DEMO_FLAGS = --config.data.dir=$(DEMO_DATA) --config.data.image_size="(64,32)" \
    --config.model.final_pool="(2,8)" --config.batch_size=32 --config.epochs=8 --config.patience=0

.PHONY: demo test lint clean

$(VENV)/.run: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install --editable ".[dev]"
	$(PIP) install --editable ./weights
	$(PIP) install ./onednn || echo "oneDNN's convolutions do not build here: their tests are skipped"
	touch $@

$(DEMO_DATA): | $(VENV)/.run
	$(BIN)/python -m data_prep --dataset=synthetic --identities=192 --output_dir=data/demo

demo: $(VENV)/.run $(DEMO_DATA)
	$(BIN)/python train.py --config=configs/attributes_cnn.py --workdir=runs/demo $(DEMO_FLAGS)
	$(BIN)/python evaluate.py --task=attributes --workdir=runs/demo --split=test --checkpoint=latest
	@echo "the 48 identities above were never seen; curves and all else in runs/demo/"

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf $(VENV) data/demo runs/demo
