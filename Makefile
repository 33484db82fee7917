# Every target sets up what it needs in .venv; nothing is installed outside the checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLD_TRITON := $(VENV)/triton-3.6.0
KERNEL_TESTS := tests/chunk_kernels/test_attend_kernel.py tests/chunk_kernels/test_kernel_edges.py

.PHONY: demo test check bench kernels gpu clean

demo: $(READY)
	$(BIN)/kvtrie demo

test: $(READY)
	$(BIN)/python -m pytest -q -n 2

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.ci/typing $(BIN)/lint-imports --config pyproject.toml

bench: $(READY)
	$(BIN)/python -m bench

# Under the newest Triton (whose interpreter `make test` runs the kernels in), and under the oldest that we hold on to.
kernels: $(READY) $(OLD_TRITON)/.ready
	$(BIN)/python -m bench.kernels
	PYTHONPATH=$(OLD_TRITON) $(BIN)/python -m bench.kernels
	PYTHONPATH=$(OLD_TRITON) $(BIN)/python -m pytest -q -n 2 $(KERNEL_TESTS)

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

# Beside torch's own Triton, and before it on the path. Its interpreter breaks on NumPy 2.4.
$(OLD_TRITON)/.ready: $(READY)
	rm -rf $(OLD_TRITON)
	$(BIN)/python -m pip install --quiet --no-deps --target $(OLD_TRITON) triton==3.6.0 "numpy<2.4"
	touch $@
