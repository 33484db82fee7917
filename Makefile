# Every target sets up what it needs in .venv; nothing is installed outside the checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check bench kernels gpu clean

demo: $(READY)
	$(BIN)/kvtrie demo

test: $(READY)
	$(BIN)/python -m pytest -q

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.ci/typing $(BIN)/lint-imports --config pyproject.toml

bench: $(READY)
	$(BIN)/python -m bench

kernels: $(READY)
	$(BIN)/python -m bench.kernels

# DRY=1 goes through it without a GPU. On a bare machine with a GPU: python -m bench.gpu
gpu: $(READY)
	$(BIN)/python -m bench.gpu $(if $(DRY),--dry)

clean:
	rm -rf $(VENV) build dist *.egg-info

# torch first, and pinned: where pip offers a CPU build of it, an unpinned one would pull gigabytes of CUDA.
# --no-build-isolation with setuptools installed: a build environment of its own would ask for torch again.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77"
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[all,dev]"
	touch $@
