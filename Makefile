# Thin names over the tools; each command works on its own too.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-long test-faults test-mutations check format generate bench clean

# Made from the project's own files; rebuilt when they change.
$(VENV)/.ready: pyproject.toml deploy/constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): a few minutes, once"
	$(BIN)/python -m pip install --quiet -c deploy/constraints.txt -e '.[daemon,dev]'
	touch $@

$(VENV)/.demo-ready: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -c deploy/constraints.txt -e '.[daemon,demo]'
	touch $@

# A client of the Hub from a year ago, in an environment of its own: the tests pull the merged model with it too.
$(VENV)/.older-hub: $(VENV)/.ready
	$(PYTHON) -m venv $(VENV)/hub-0.36
	$(VENV)/hub-0.36/bin/python -m pip install --quiet huggingface_hub==0.36.0
	touch $@

test: $(VENV)/.ready $(VENV)/.older-hub  ## The tests (under ten minutes)
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

test-long: $(VENV)/.ready $(VENV)/.older-hub  ## What takes minutes: sequences and storms at full length
	$(BIN)/python -m pytest -m long

test-faults: $(VENV)/.ready  ## Kills at random moments, for longer
	$(BIN)/python -m pytest -m faults

test-mutations: $(VENV)/.ready  ## Ten thousand damaged checkpoints of every format; SEED=... repeats a run
	FOLDIN_TEST_SEED=$(SEED) $(BIN)/python -m pytest -m mutations -s

demo: $(VENV)/.demo-ready  ## The main job on real images, from training to the merged model
	$(BIN)/python deploy/demo/demo.py

check: $(VENV)/.ready  ## Format, lint, types, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python protos/generate.py --check

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: $(VENV)/.ready  ## The Python of protos/ into clients/foldin/v1
	$(BIN)/python protos/generate.py

bench: $(VENV)/.demo-ready  ## Figures for tests/bench/RESULTS.md
	$(BIN)/python -m tests.bench

clean:
	rm -rf $(VENV) .demo
