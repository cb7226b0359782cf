# The short commands. Each makes what it needs in a virtual environment of its own (.venv), so a fresh clone on a
# machine with Python, make and a C++ compiler is enough. Nothing outside this folder is touched.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
ARGS ?=
WORKERS ?= auto

BIN := $(VENV)/bin
# setup.py and CMake look for their tools on the path.
export PATH := $(abspath $(BIN)):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SOURCES := $(shell find csrc cmake -type f) CMakeLists.txt setup.py pyproject.toml
CPP := $(shell find csrc $(wildcard tests/emulator) -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo test bench lint format wheel gpu-check cuda-report clean FORCE
.NOTPARALLEL: # two installations into one environment would race; the build itself is parallel

help:
	@echo 'make demo         a photograph through whole networks, PyTorch against fastconv, with pictures'
	@echo 'make test         the test suite, in WORKERS processes (one for each core, at most 8)'
	@echo 'make bench        layers of published networks against PyTorch (ARGS="--full --json out.json")'
	@echo 'make lint         ruff, mypy and clang-format; make format applies what they can'
	@echo 'make wheel        source archive and wheel in dist/'
	@echo 'make gpu-check    the checks that need a GPU, with the system Python'
	@echo 'make cuda-report  registers, spills and shared memory of every CUDA kernel, to build/cuda-report.txt'
	@echo 'make clean        removes all that the commands above have made'
	@echo 'ARGS are passed on; TORCH ($(TORCH)) says which PyTorch to install, PYTHON ($(PYTHON)) for which Python.'

demo: $(VENV)/.with-demo
	$(BIN)/fastconv demo $(ARGS)

# Threads that wait for others sleep, because there are more than cores.
test: $(VENV)/.with-test $(VENV)/.with-demo $(VENV)/.with-bench
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 $(ARGS)

bench: $(VENV)/.with-bench
	$(BIN)/fastconv bench $(ARGS)

lint: $(VENV)/.with-lint $(VENV)/.with-demo $(VENV)/.with-bench
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/.with-lint
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

wheel: $(VENV)/.torch
	$(BIN)/pip install -q build
	$(BIN)/python -m build --no-isolation --skip-dependency-check $(ARGS)

gpu-check:
	$(PYTHON) tools/gpu_check.py $(ARGS)

cuda-report: $(VENV)/.with-test
	$(BIN)/python tools/cuda_report.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache fastconv/*.so \
	  fastconv-demo.png fastconv-demo-pooling.png fastconv-bench.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# fastconv in place, with one of its extras. PyTorch is there before it, and it is built against that one: an isolated
# build would download another.
$(VENV)/.with-%: $(VENV)/.torch $(SOURCES)
	@echo 'Building fastconv and installing what "$*" needs'
	@$(BIN)/pip install -q --no-build-isolation -e '.[$*]'
	@touch $@

# Asked for every time, made anew only where TORCH differs from what is installed.
$(VENV)/.torch: FORCE
	@test "$$(cat $@ 2>/dev/null)" = "$(TORCH)" || { \
	  echo 'Making $(VENV) with $(TORCH)' && \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/pip install '$(TORCH)' && \
	  $(BIN)/pip install -q 'setuptools>=77' 'pybind11>=3' ninja && \
	  { command -v cmake >/dev/null || $(BIN)/pip install -q cmake; } && \
	  echo '$(TORCH)' > $@; }
