# `make demo` and `make test` are all that is needed: each makes .venv with plain pip, installs what is missing, and runs.
# With `PYTHON=python3.13` a venv of its own is used, .venv-3.13.
ifeq ($(origin PYTHON), undefined)
  INTERPRETER := python3
  VENV := .venv
else
  INTERPRETER := $(shell .ci/find-python $(PYTHON))
  ifeq ($(INTERPRETER),)
    $(error No interpreter $(PYTHON) runs here, and pyenv has none)
  endif
  VENV := .venv-$(shell $(INTERPRETER) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
endif
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
WITH_TORCH := $(VENV)/installed-with-torch

# The TPU's compiler has no release for older Pythons.
TPU_PYTHON ?= $(shell .ci/find-python python3.13 || .ci/find-python python3.12 || echo python3.12-or-newer)
TPU_BIN := .venv-tpu/bin
WITH_TPU := .venv-tpu/installed

# The GPU's tests need jax[cuda13] and pytest. A machine that has them needs no venv: make test-gpu GPU_PYTHON=python3
GPU_PYTHON ?= .venv-gpu/bin/python
WITH_GPU := $(if $(filter .venv-gpu/%,$(GPU_PYTHON)),.venv-gpu/installed)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.2

# PyTorch is pinned, so that the CPU build is taken where one is offered and no package replaces it.
# vit-pytorch asks for torchvision, which would; two of its files are all that is used, and they need only torch.
# torchax, a column of the benchmarks: 0.0.13, the newest that is no pre-release, cannot be imported with this torch.
TORCH := torch==2.13.0
PUBLISHED := glom-pytorch==0.0.14 hourglass-transformer-pytorch==0.0.6 CoLT5-attention==0.11.2 MaMMUT-pytorch==0.0.7
# Tiny random models of Hugging Face's, which are compared with ports.
PUBLISHED += transformers==5.24.0
PUBLISHED_BARE := vit-pytorch==1.26.11 torchax==0.0.14.dev20261026

.PHONY: demo test lint docs test-without-torch test-with-torch test-tpu test-gpu tables results tpu-table benchmarks torchax data clean

demo: $(WITH_TORCH)
	$(BIN)/jaxmodels demo --output out/demo

# The two suites do not touch each other: side by side they use both cores. The site waits for the first free one.
test: lint
	$(MAKE) --jobs=2 --output-sync=target test-without-torch test-with-torch docs

lint: $(WITH_TORCH)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check
	$(BIN)/lint-imports

# The site, in out/docs; a warning is an error.
docs: $(WITH_TORCH)
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs out/docs

# tests/no_torch holds a module `torch` that refuses to be imported, also in subprocesses.
test-without-torch: $(INSTALLED)
	PYTHONPATH=tests/no_torch $(BIN)/python -m pytest tests

test-with-torch: $(WITH_TORCH)
	$(BIN)/python -m pytest parity_tests

# The TPU's own compiler, which needs no TPU, but Python 3.12 or newer: in a venv of its own, with the extra [tpu].
# Compiles small steps of the five models and kernels of attention for two chips: a few minutes on two cores.
test-tpu: $(WITH_TPU)
	$(TPU_BIN)/python -m pytest tests_tpu

# Four minutes on one H100 or H200. Without a GPU every test is skipped; with REHEARSE_ON_CPU=1 they run on the CPU, but
# for cuDNN's kernel. The settings of the other suites stay away: they need beartype, and make warnings errors.
test-gpu: $(WITH_GPU)
	$(GPU_PYTHON) -m pytest tests_gpu -rs --confcutdir=tests_gpu --override-ini=filterwarnings=default

# The table of TPUs in docs/train.md: hours. What is there already is kept; see the script.
tpu-table: $(WITH_TPU)
	$(TPU_BIN)/python -m tools.tpu

# The tables in README.md and docs/compare.md, from two fresh runs.
tables: $(WITH_TORCH)
	$(BIN)/jaxmodels compare --dtype float64 --output out/compare-float64
	$(BIN)/jaxmodels compare --dtype float32 --output out/compare-float32
	$(BIN)/python -m tools.comparison

# The tables in docs/train.md: about an hour and a half.
results: $(WITH_TORCH)
	$(BIN)/python -m tools.results
	$(BIN)/python -m tools.memory

# The tables and plots of benchmarks/README.md and the speed in README.md: under 40 minutes on an idle machine.
benchmarks: $(WITH_TORCH)
	$(BIN)/python -m benchmarks --keep --output out/benchmarks
	$(BIN)/python -m benchmarks --tables
	$(BIN)/python -m tools.comparison --tables

# The table of torchax in benchmarks/README.md: about ten minutes on an idle machine.
torchax: $(WITH_TORCH)
	$(BIN)/python -m benchmarks --implementations eager torchax jax --budget 900 --keep --output out/torchax
	$(BIN)/python -m benchmarks --tables

# The data files inside the package; see the script for what it needs.
data: $(WITH_TORCH)
	$(BIN)/python tools/build_data.py

$(INSTALLED): pyproject.toml Makefile
	$(INTERPRETER) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(WITH_TORCH): $(INSTALLED)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs,equinox,haiku]' $(TORCH) $(PUBLISHED)
	$(BIN)/python -m pip install --quiet --no-deps $(PUBLISHED_BARE)
	touch $@

$(WITH_TPU): pyproject.toml Makefile
	$(TPU_PYTHON) -m venv .venv-tpu
	$(TPU_BIN)/python -m pip install --quiet --editable '.[dev,tpu]'
	touch $@

.venv-gpu/installed: pyproject.toml Makefile
	$(INTERPRETER) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --editable '.[dev,cuda13]'
	touch $@

clean:
	rm -rf .venv .venv-3.* .venv-tpu .venv-gpu .jax_cache out
