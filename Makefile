# `make demo` and `make test` set themselves up; everything lives in .venv and build/.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SOURCES := $(shell find kernels -name '*.cpp' -o -name '*.h' -o -name '*.hpp' -o -name '*.cu*' -o -name 'CMakeLists.txt' 2>/dev/null) CMakeLists.txt pyproject.toml

export ORT_DISABLE_TELEMETRY ?= 1

.PHONY: setup test lint demo stress bench fatbin cuda-check gpu-check clean neon-check tensorrt-check old-cuda-check driver-check

setup: $(STAMP)

# torch is installed first and pinned, so that nothing below pulls a build with gigabytes of CUDA libraries.
$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet "scikit-build-core>=0.10" "nanobind>=2.4" cmake ninja
	$(BIN)/python -m pip install --quiet --no-build-isolation -e ".[export,bench,dev]"
	touch $@

test: $(STAMP) lint
	$(BIN)/python -m pytest -n auto

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build $(VENV) demo

# Under five minutes on two cores: 5,000 scenes, the committed model exported, indexed and asked.
demo: $(STAMP)
	$(BIN)/python tools/demo.py

# The long tests: thousands of crashes and power cuts, minutes of load, a hundred thousand hostile inputs.
stress: $(STAMP)
	nice -n 15 $(BIN)/python -m pytest -m slow -rA

# Every figure of the README on this machine; some 30 minutes on two quiet cores.
bench: $(STAMP)
	$(BIN)/python tools/measure.py

# The kernels for aarch64, cross-compiled and run through their suites by an emulator. Needs Debian's
# g++-aarch64-linux-gnu and qemu-user-static.
neon-check: $(STAMP)
	$(BIN)/cmake -S . -B build/neon -G Ninja -DCMAKE_TOOLCHAIN_FILE=kernels/score/aarch64.cmake -DCIR_CASE_RUNNER=ON
	$(BIN)/cmake --build build/neon
	CIR_CASE_RUNNER="qemu-aarch64-static build/neon/cir_score_cases" \
	  CIR_RESAMPLE_RUNNER="qemu-aarch64-static build/neon/cir_resample_cases" \
	  $(BIN)/python -m pytest tests/scoring/test_other_machine.py tests/runtime/test_resampling.py

# The CUDA kernels for every architecture, two files beside the Python code. Needs nvcc, no GPU.
fatbin:
	$(PYTHON) tools/build_cuda.py

# The same, and fails on spilled registers, local memory, or a difference from the resources.json beside each.
cuda-check:
	$(PYTHON) tools/build_cuda.py --check

# The kernels through the compilers of JetPack 6's CUDA, as libraries (45 MB each, downloaded once). Needs no GPU.
old-cuda-check:
	$(PYTHON) tools/old_cuda_check.py

# Offline, on a machine with a GPU, with the packages that are there: docs/gpu-check.md.
gpu-check:
	$(PYTHON) tools/gpu_check.py

# Our TensorRT calls against the real Python bindings of 10 and 11, and every system's graphs built into plans by
# TensorRT for RTX (150 MB together, downloaded once). Needs no GPU.
tensorrt-check: $(STAMP)
	$(BIN)/python tools/tensorrt_check.py

# PyCUDA and our calls of the CUDA driver on an emulated driver and GPU. Needs PyCUDA (docs/gpu-check.md), no GPU.
driver-check: $(STAMP)
	$(BIN)/python tools/driver_check.py
