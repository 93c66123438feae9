# Two commands: `make demo` and `make test`. Both set up .venv first if it is missing or out of date.
PYTHON ?= python3.12
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH_THREADS ?= 1
export OMP_NUM_THREADS ?= $(TORCH_THREADS)
RUN_DIR ?= runs/demo
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: setup demo test lint types tests gpu-check gpu-check-cpu test-slow test-layouts test-multinode test-faults fuzz clean

setup: $(STAMP)

$(STAMP): requirements/base.txt requirements/cpu.txt requirements/dev.txt requirements/overrides.txt setup.py tools/check_install.py
	@command -v $(PYTHON) >/dev/null || { echo "set-up: $(PYTHON) not found: install Python 3.12, or name it: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==0.13.9
	$(UV) --compile-bytecode --override requirements/overrides.txt -r requirements/cpu.txt -r requirements/dev.txt
	$(UV) --no-deps --no-build-isolation --editable .
	$(BIN)/python tools/check_install.py
	@touch $@

demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" RUN_DIR=$(RUN_DIR) bash examples/quickstart_cpu.sh $(DEMO_OVERRIDES)

test: lint types tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

tests: $(STAMP)
	$(BIN)/python -m pytest --durations=15

# On a machine with a GPU, in an environment installed as docs/gpu.md says: one report about everything no GPU has run yet.
# It installs nothing, so it takes .venv where there is one and python3 elsewhere (the image of the Dockerfile).
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
gpu-check:
	$(GPU_PYTHON) -m selfemo.gpu_check $(GPU_CHECK)

# The same steps on a CPU, to test the harness.
gpu-check-cpu: $(STAMP)
	$(BIN)/python -m selfemo.gpu_check --device cpu --output runs/gpu-check-cpu $(GPU_CHECK)

# What `make test` leaves out for its length has a mark (pyproject.toml) and one of these targets.

# Repetitions of what faster tests prove, the layouts below among them. Not run whole yet.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --durations=5

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

# Every kill point in both layouts and every other fault; half an hour. Last run 2026-11-26: docs/reliability.md.
test-faults: $(STAMP)
	$(BIN)/python -m pytest -m faults --capture=no

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
