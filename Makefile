# `make demo` and `make test` set themselves up; everything lives in .venv and build/.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SOURCES := $(shell find kernels -name '*.cpp' -o -name '*.h' -o -name '*.hpp' -o -name '*.cu*' -o -name 'CMakeLists.txt' 2>/dev/null) CMakeLists.txt pyproject.toml

export ORT_DISABLE_TELEMETRY ?= 1

.PHONY: setup test lint demo demo-emoji stress browser triton-check ray-check openvino-check bench docs wheels release-check fatbin cuda-check gpu-check gpu-engine-check clean neon-check amx-check \
        tensorrt-check old-cuda-check driver-check

setup: $(STAMP)

# torch is installed first and pinned, so that nothing below pulls a build with gigabytes of CUDA libraries.
# CIR_CUDA=ON compiles the CUDA kernels too, which else happens only where nvcc and an NVIDIA driver are.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
CIR_CUDA ?= AUTO
$(STAMP): $(SOURCES)
	@test -x $(BIN)/python || { echo "Setting up $(VENV), once: 1/4 a virtual environment"; $(PYTHON) -m venv $(VENV); }
	@echo "2/4 PyTorch and the tools that compile (200 MB to download)"
	@$(PIP) "pip>=23.1"  # older Pythons bring one that cannot pass settings to a build
	@$(PIP) torch==2.13.0 "scikit-build-core>=0.11" "nanobind>=2.4" cmake ninja
	@echo "3/4 what cir-infer, its export, its benchmarks and its tests need (150 MB)"
	@$(PIP) $$($(BIN)/python tools/packages/requirements.py export bench dev)
	@echo "4/4 the kernels in C++"
	@$(PIP) --no-build-isolation --no-deps -C cmake.define.CIR_CUDA=$(CIR_CUDA) -e .
	@touch $@

# With bytecode, or each of the many processes that it starts would compile PyTorch anew.
test: $(STAMP) lint
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build $(VENV) demo demo-emoji

# Under five minutes on two cores: 5,000 scenes, the committed model exported, indexed and asked.
demo: $(STAMP)
	$(BIN)/python tools/demos/scenes.py

# The same with emoji that people drew, which are fetched once (80 MB).
demo-emoji: $(STAMP)
	@$(PIP) --retries 1 $$($(BIN)/python tools/packages/requirements.py emoji) 2>$(VENV)/pip.log || \
	  { echo "demo-emoji: resvg-py, which draws OpenMoji, cannot be installed: $$(tail -n 1 $(VENV)/pip.log)"; exit 1; }
	$(BIN)/python tools/demos/emoji.py

# The long tests: thousands of crashes and power cuts, minutes of load, a hundred thousand hostile inputs.
stress: $(STAMP)
	nice -n 15 $(BIN)/python -m pytest -m slow -rA

# What the tests of cir-serve's page need: Chromium, where this may install it, Playwright to drive it, and axe-core.
browser: $(STAMP)
	@$(PIP) "playwright>=1.48" axe-core-python
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && \
	    apt-get -qq install -y --no-install-recommends chromium; } || \
	  echo "no Chromium here, and no right to install it: the page's tests will be skipped"

# The model repository of `cir-export --triton` against Triton's schema and in Triton itself (75 MB, downloaded once).
triton-check: $(STAMP)
	@$(PIP) --no-deps --target build/triton tritonclient nvidia-pytriton
	@$(PIP) --no-deps --target build/triton-numpy "numpy<2"
	PYTHONPATH=build/triton TRITON_NUMPY=$(CURDIR)/build/triton-numpy \
	  $(BIN)/python -m pytest -n 0 -rs tests/export/test_triton.py

# Bundles on OpenVINO and in bfloat16 (60 MB, downloaded once). Not in `make test`: in one process with everything else the
# suite's was ended by a signal, twice in two runs.
openvino-check: $(STAMP)
	@$(PIP) $$($(BIN)/python tools/packages/requirements.py openvino)
	$(BIN)/python -m pytest -n 0 -rs tests/runtime/openvino tests/export/precision/test_bfloat16.py

# Shards on a real Ray (80 MB, downloaded once): answers, deaths, and two minutes of chaos.
ray-check: $(STAMP)
	@$(PIP) $$($(BIN)/python tools/packages/requirements.py ray-serve)
	$(BIN)/python -m pytest -n 0 -rs -m ray tests/shards tests/cluster
	$(BIN)/python -m tests.shards.chaos --minutes 2
	$(BIN)/python -m tests.cluster.chaos_indexing --kills 50

# The documentation as a site in build/site, with the API's reference and every command's help.
docs: $(STAMP)
	@$(PIP) $$($(BIN)/python tools/packages/requirements.py docs)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Wheels for x86-64 and aarch64 into dist/, from any machine, with the CUDA kernels where `make fatbin` has run.
wheels:
	$(PYTHON) tools/release/build_wheels.py $(if $(wildcard cir_infer/gpu/kernels.fatbin),--fatbins cir_infer/gpu)

# All that can be done before a release, with a line for each step at the end. DIST=FOLDER takes wheels that are built
# already, EMULATED="ROOT ..." names unpacked Debians whose Pythons ask those for aarch64 (CONTRIBUTING.md).
release-check: $(STAMP)
	$(BIN)/python tools/release/release_check.py $(if $(DIST),--dist $(DIST)) $(if $(EMULATED),--emulated $(EMULATED))

# Every figure of docs/performance.md on this machine; some 30 minutes on two quiet cores.
bench: $(STAMP)
	$(BIN)/python tools/docs/measure.py

# The kernels for aarch64, cross-compiled and run through their suites by an emulator. Needs Debian's
# g++-aarch64-linux-gnu and qemu-user-static.
neon-check: $(STAMP)
	$(BIN)/cmake -S . -B build/neon -G Ninja -DCMAKE_TOOLCHAIN_FILE=kernels/score/aarch64.cmake -DCIR_CASE_RUNNER=ON
	$(BIN)/cmake --build build/neon
	CIR_CASE_RUNNER="qemu-aarch64-static build/neon/cir_score_cases" \
	  CIR_RESAMPLE_RUNNER="qemu-aarch64-static build/neon/cir_resample_cases" \
	  CIR_RECURRENT_RUNNER="qemu-aarch64-static build/neon/cir_recurrent_cases" \
	  $(BIN)/python -m pytest tests/scoring/test_other_machine.py tests/runtime/test_resampling.py \
	  tests/runtime/recurrent/test_processor.py

# AMX on an emulated processor, three minutes. What that needs: tools/emulator/bochs.py.
amx-check: $(STAMP)
	$(BIN)/cmake -S . -B build/amx -G Ninja -DCIR_CASE_RUNNER=ON
	$(BIN)/cmake --build build/amx --target cir_score_cases
	CIR_AMX_RUNNER="$(BIN)/python tools/emulator/bochs.py build/amx/cir_score_cases" \
	  $(BIN)/python -m pytest -n 0 -k Elsewhere tests/scoring/test_bytes.py

# The CUDA kernels for every architecture, two files beside the Python code. Needs nvcc, no GPU.
fatbin:
	$(PYTHON) tools/cuda/build_cuda.py

# The same, and fails on spilled registers, local memory, or a difference from the resources.json beside each.
cuda-check:
	$(PYTHON) tools/cuda/build_cuda.py --check

# The kernels through the compilers of JetPack 6's CUDA, as libraries (45 MB each, downloaded once). Needs no GPU.
old-cuda-check:
	$(PYTHON) tools/cuda/old_cuda_check.py

# Offline, on a machine with a GPU, with the packages that are there: docs/gpu-check.md.
gpu-check:
	$(PYTHON) tools/cuda/gpu_check.py

gpu-engine-check:
	$(PYTHON) tools/cuda/gpu_check.py --engines

# Our TensorRT calls against the real Python bindings of 10 and 11, and every system's graphs built into plans by
# TensorRT for RTX (150 MB together, downloaded once). Needs no GPU.
tensorrt-check: $(STAMP)
	$(BIN)/python tools/tensorrt/check.py

# PyCUDA and our calls of the CUDA driver on an emulated driver and GPU. Needs PyCUDA (docs/gpu-check.md), no GPU.
driver-check: $(STAMP)
	$(BIN)/python tools/cuda/driver_check.py
