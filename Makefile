# Two commands do everything from a fresh clone: `make bench` and `make test`. Both make .venv first; nothing is done twice.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(filter-out csrc/cuda/%,$(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h)) setup.py
CUDA_SOURCES := $(wildcard csrc/cuda/*.cu csrc/cuda/*.cuh csrc/cuda/*.h)
CUTLASS := nvidia-cutlass==4.2.0.0
RESULTS := benchmarks/results
GPU_PYTHON = $(if $(filter command environment,$(origin PYTHON)),$(PYTHON),python3)
GPU_NEEDS := torch triton transformers numpy pytest rich setuptools typer
TRAINING_NEEDS := matplotlib psutil yaml
STAGES ?=
WORKERS ?= auto
FLAGS ?=
CASES ?= 2000
SEED ?=
TRITON := triton==3.6.0
PEERS := openvino==2026.4.1 onnxruntime==1.32.0 onnx==1.23.2

BERTFAST_KERNEL_CACHE ?= $(CURDIR)/build/kept

export HF_HUB_OFFLINE := 1
export BERTFAST_KERNEL_CACHE

.PHONY: bench bench-cpu test fuzz lint format micro kernels cuda gpu matrix newest dist docs clean

bench: $(VENV)/.built
	$(BIN)/bertfast bench --json $(RESULTS)/cpu.json --plot $(RESULTS)/cpu.png

# Beside OpenVINO and ONNX Runtime, which are installed into .venv first. FLAGS=--brief for a short one.
bench-cpu: $(VENV)/.built $(VENV)/.bench
	$(BIN)/python -m benchmarks.cpu $(FLAGS)

# A worker for each core, eight at most. WORKERS=0 runs all in one process, for a debugger.
test: $(VENV)/.built
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Random configs, heads, masks, modes and wrecked state against stock transformers: CASES of them from SEED on, or from a fresh one.
fuzz: $(VENV)/.built
	BERTFAST_FUZZ_CASES=$(CASES) $(if $(SEED),BERTFAST_FUZZ_SEED=$(SEED)) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/convert/test_fuzz.py -q -k like_stock

# Each op forward and backward against eager PyTorch.
micro: $(VENV)/.built
	$(BIN)/python -m pytest benchmarks/ops -o python_files='bench_*.py' -o python_functions='bench_* test_*' -o addopts= --benchmark-only --benchmark-columns=median,iqr,rounds

# Compiles every Triton kernel for sm_80, sm_90 and sm_100, needs no GPU, and writes the table of what came out.
kernels: $(VENV)/.built
	env -u TRITON_INTERPRET $(BIN)/python -m benchmarks.gpu.kernels --brief --markdown docs/kernels.md

# The CUDA C++ products, where there is an nvcc: no GPU is needed. Its headers are installed alone, without what their package asks for.
cuda: $(VENV)/.built
	@{ command -v nvcc || test -x "$$CUDA_HOME/bin/nvcc" || test -x /usr/local/cuda/bin/nvcc; } >/dev/null || { echo "No nvcc: the CUDA C++ products are not compiled here."; exit 0; }; \
	test -n "$$BERTFAST_CUTLASS" || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(CUTLASS) || exit 1; \
	$(BIN)/python csrc/cuda/build.py

# On a machine with a GPU, with its own Python and torch: nothing is installed. STAGES="parity micro" runs some of it.
gpu:
	@lacks() { $(GPU_PYTHON) -c 'import importlib.util, sys; print(*(name for name in sys.argv[1:] if not importlib.util.find_spec(name)))' "$$@"; }; \
	missing=$$(lacks $(GPU_NEEDS)) && test -z "$$missing" \
		|| { echo "make gpu installs nothing: it uses a Python that has CUDA PyTorch with its Triton, and $(filter-out torch triton,$(GPU_NEEDS)). $(GPU_PYTHON) lacks $${missing:-all of it, or does not run}. Install what is missing, or call make gpu PYTHON=/path/to/python"; exit 1; }; \
	missing=$$(lacks $(TRAINING_NEEDS)); test -z "$$missing" || echo "$(GPU_PYTHON) lacks $$missing: the stage training will fail"; \
	command -v $${CXX:-c++} >/dev/null || echo "No C++ compiler (looked for $${CXX:-c++}): the stage build will fail; Triton needs a C compiler"
	env -u TRITON_INTERPRET $(GPU_PYTHON) -m benchmarks.gpu $(STAGES)

# Fresh environments from the oldest versions to the newest: docs/versions.md. FLAGS="--cell newest" runs one cell of it.
matrix: $(if $(FLAGS),,$(VENV)/.built)
	$(PYTHON) -m matrix $(FLAGS)
	$(if $(FLAGS),,$(BIN)/python -m matrix.newest --strict)

# tests/convert on the newest transformers: what fails there and not on the pinned one is printed last, and fails nothing.
newest: $(VENV)/.built
	$(BIN)/python -m matrix.newest $(FLAGS)

# A wheel and a source distribution into dist/. Without a compiler the wheel is pure Python, and the build says so.
dist: $(VENV)/.built
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .

# The site into build/site, from docs/ and the docstrings; a dead link or a page that no menu names is an error. Nothing is fetched.
docs: $(VENV)/.built
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site  # --quiet would hide warnings from --strict

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(filter %.cpp %.h,$(NATIVE)) $(CUDA_SOURCES)

format: $(VENV)/.built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter %.cpp %.h,$(NATIVE)) $(CUDA_SOURCES)

$(VENV)/.requirements: requirements-dev.txt Makefile
	@test -n "$(PYTHON)" || { echo "bertfast needs Python 3.11 to 3.13 and found none: install it, or call make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "bertfast needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) --version). Call make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing torch and the other packages (about 2.5 GB) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(TRITON)
	touch $@

# What is installed already stays as it is: the peers must not change what `make test` runs on. Without them their rows are missing.
$(VENV)/.bench: $(VENV)/.requirements Makefile
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PEERS) 'numpy>=2,<2.4' && touch $@ \
		|| echo "Could not install $(PEERS): going on without those that are missing."

# The extension is skipped, with a word, where there is no compiler; BERTFAST_BUILD=cpu makes that an error.
$(VENV)/.built: $(VENV)/.requirements pyproject.toml $(NATIVE)
	@command -v $${CXX:-c++} >/dev/null || echo "No C++ compiler (looked for $${CXX:-c++}): going on without the C++ kernels, slower. Install g++ 11 or newer, then run make again."
	@echo "Building bertfast (the C++ kernels take a minute or two) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	if command -v $${CXX:-c++} >/dev/null; then touch $@; fi

clean:
	rm -rf build dist $(VENV)/.built bertfast/_C*.so bertfast/libbertfast_cuda.so bertfast/_build_info.py
