# Every target sets up what it needs: a virtual environment in .venv, made from any Python from 3.10 to 3.13.
PYTHON ?= python3
# A CPU build, of some 200 MB, where pip finds one, here or in pytorch's index; PyPI's own builds for Linux bring gigabytes of CUDA.
# Only a version named whole keeps pip from a newer CUDA build. For a GPU: make ... TORCH=torch
TORCH ?= torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu
VENV ?= .venv
BIN := $(VENV)/bin
# Tests run in so many processes, of one thread each. Two of them leave a third of two cores idle, while tests wait for processes
# that they have started. Compiled modules are kept for the hundreds of short processes that they start.
WORKERS ?= 3
TESTS = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --durations 10
SEEDS ?= 0
ROLLOUTS ?= 100
DIRECTORY ?= runs/demo
N ?= 50
SEED ?= 0
NAME ?=
ARGS ?=
MODEL ?= HuggingFaceTB/SmolLM2-135M-Instruct

.PHONY: demo test lint check check-all tensorboard embedded drill bench gpu docs versions resolve clean

demo: $(VENV)/core  ## GRPO on the embedded policy, and the evaluation before and after
	$(BIN)/python examples/demo.py --seeds $(SEEDS) --rollouts $(ROLLOUTS) --directory $(DIRECTORY)

test: $(VENV)/dev  ## what must hold of every change, in minutes: lint beside the tests
	$(MAKE) --no-print-directory --jobs 2 lint check

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Who is ready takes the next file, the longest first: see LONG in tests/budget.py.
check: $(VENV)/dev
	$(TESTS) --dist loadfile --no-loadscope-reorder

check-all: $(VENV)/dev  ## what takes longer than `make test` may: learning, the fault drill, whole matrices, vLLM if it is installed
	$(TESTS) --dist worksteal -m "slow and not gpu"

tensorboard: $(VENV)/core  ## look at the runs
	$(BIN)/rl-lightning tensorboard runs

embedded: $(VENV)/core  ## rebuild the embedded policy from nothing
	$(BIN)/python examples/embedded_policy/start.py runs/embedded/start
	$(BIN)/python -m rl_lightning fit --config configs/sft.yaml --config examples/embedded_policy/sft.yaml
	rm -rf rl_lightning/assets/chain_sum
	cp -r runs/embedded/hf rl_lightning/assets/chain_sum

drill: $(VENV)/core  ## kill N runs at random moments, go on with them, compare: all must be identical
	$(BIN)/python -m examples.drill --kills $(N) --seed $(SEED)

bench: $(VENV)/bench  ## this library beside TRL on the same work; all benchmarks, or those in NAME
	$(BIN)/python -m examples.bench $(NAME) --model $(MODEL)

gpu: $(VENV)/dev  ## on a machine with a GPU, installed with TORCH=torch: its tests, and a report of sampling and training in gpu_report.md
	$(BIN)/python -m examples.gpu $(ARGS)

docs: $(VENV)/dev  ## build the documentation into site/, without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

versions: $(VENV)/dev  ## the suite on the oldest and the newest releases that pyproject.toml admits; ARGS="--only oldest -- tests/unit"
	$(BIN)/python -m examples.versions suite --directory $(VENV)/versions $(ARGS)

resolve: $(VENV)/dev  ## what every extra, and all together, would install today; installs nothing
	$(BIN)/pip install --quiet uv
	$(BIN)/python -m examples.versions resolve

$(VENV)/core: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/bench: $(VENV)/core
	$(BIN)/pip install --quiet --editable ".[bench]"
	touch $@

$(VENV)/dev: $(VENV)/core
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs site
