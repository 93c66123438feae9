# Two commands: `make demo` and `make test`. Both set up .venv first if it is missing or out of date.
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH_THREADS ?= 1
export OMP_NUM_THREADS ?= $(TORCH_THREADS)

.PHONY: setup lock demo smoke test lint types tests gpu-check gpu-check-cpu test-long test-slow test-demo test-layouts test-multinode test-faults test-portable fuzz clean

setup: $(STAMP)

# Set-up finds Python 3.12 or 3.13 by itself (tools/find_python.sh says where it looks); PYTHON=3.13 or a path names one.
$(STAMP): $(wildcard requirements/*) setup.py tools/find_python.sh tools/set_up.py tools/check_install.py
	@python=$$(sh tools/find_python.sh "$(PYTHON)") || exit 2; "$$python" tools/set_up.py "$(VENV)"
	@touch $@

# The lock of everything but torch and the CUDA libraries that come with it: which of its files is right depends on the index.
CUDA_LIBRARIES := cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime \
    nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
    nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx
lock:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.12 --no-annotate --no-header --generate-hashes \
	    --override requirements/overrides.txt $(addprefix --no-emit-package ,torch $(CUDA_LIBRARIES)) \
	    requirements/cpu.txt requirements/demo.txt requirements/dev.txt --output-file requirements/cpu.lock

# RUN_DIR reaches the script as a variable of its environment, so that no character in it is read by a shell.
demo: export RUN_DIR ?= runs/demo
demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/quickstart_cpu.sh $(DEMO_OVERRIDES)

# Every stage with a model of two million parameters: for tests, since it learns no English.
smoke: export RUN_DIR = runs/smoke
smoke: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" CONFIG=examples/configs/smoke_cpu.yaml bash examples/quickstart_cpu.sh $(SMOKE_OVERRIDES)

test: lint types tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

# What can differ between Pythons: imports (set-up ends with them), weights, checkpoints, corpora, kernels in the interpreter, one short run.
# CI runs it on 3.13: make test-portable VENV=.venv-3.13 PYTHON=3.13
PORTABLE := tests/weights/test_convert.py tests/weights/test_convert_refusals.py tests/weights/test_old_checkpoint.py tests/weights/test_hf_files.py tests/run/test_checkpoints.py \
    tests/corpora tests/kernels/test_interpreter.py tests/fuzz/test_weights.py
test-portable: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" $(PORTABLE)
	$(MAKE) smoke VENV=$(VENV) RUN_DIR=runs/portable SMOKE_OVERRIDES="sft.steps=8 iterations=1 evaluation.limit=40"

# Two processes, since most tests use one core. The tests of a file share fixtures, so they stay together; tests/conftest.py orders the files.
TEST_PROCESSES ?= 2
tests: $(STAMP)
	$(BIN)/python -m pytest --numprocesses=$(TEST_PROCESSES) --dist=loadfile --no-loadscope-reorder --durations=15

# On a machine with a GPU, in an environment installed as docs/gpu.md says: one report about everything no GPU has run yet.
# It installs nothing, so it takes .venv where there is one and python3 elsewhere (the image of the Dockerfile).
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
gpu-check:
	$(GPU_PYTHON) -m tools.gpu_check $(GPU_CHECK)

# The same steps on a CPU, to test the harness.
gpu-check-cpu: $(STAMP)
	$(BIN)/python -m tools.gpu_check --device cpu --output runs/gpu-check-cpu $(GPU_CHECK)

# What `make test` leaves out for its length has a mark (pyproject.toml) and one of these targets.

# Tests of ten seconds and more that CI runs beside `make test`.
test-long: $(STAMP)
	$(BIN)/python -m pytest -m "long and not slow" --numprocesses=$(TEST_PROCESSES) --dist=loadfile --durations=5

# Repetitions of what faster tests prove, the layouts below among them: a test there has a faster one in `make test`. Not run whole yet.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --durations=5

# The whole demo for seeds 1 to 3, and what self-play gained; 23 minutes in bf16. Last run 2026-11-30: docs/study/log.md.
test-demo: $(STAMP)
	$(BIN)/python -m pytest -m demo

# The slow ones of the layouts alone; the tables of docs/parity.md are `python -m tests.helpers.parity_table`. Last run 2026-11-25: docs/parity.md.
test-layouts: $(STAMP)
	$(BIN)/python -m pytest -m slow tests/megatron

# Two torchrun agents on this machine as two nodes: 2 x 2 processes, and one node killed and rejoined. Last run 2026-11-26: docs/multi_node.md.
test-multinode: $(STAMP)
	$(BIN)/python -m pytest -m multinode --durations=5

# A hundred thousand hostile inputs for everything that reads a file or a line from elsewhere (docs/hostile_input.md).
FUZZ_INPUTS ?= 100000
fuzz: $(STAMP)
	FUZZ_INPUTS=$(FUZZ_INPUTS) $(BIN)/python -m pytest -p no:cacheprovider tests/fuzz tests/emotions/test_answer_fuzz.py

# Every kill point in both layouts and every other fault; 12 to 17 minutes. Last run: docs/reliability_log.md.
test-faults: $(STAMP)
	$(BIN)/python -m pytest -m faults --capture=no

clean:
	rm -rf .venv .venv-* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
