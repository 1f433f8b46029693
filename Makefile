# ALOE for ROS 2. `make help` lists the targets.
PYTHON_BIN := .venv/bin/python
PYTEST_ARGS ?= -n 2 --dist loadfile
ONLY ?=
INPUTS ?= 10000
FUZZ ?=
HOURS ?= 8

export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lerobot fuzz bench soak evidence lint format docs lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  \1\t/' | expand -t 12

setup: ## make or update the environment in .venv (PYTHON=python3.12 chooses the interpreter)
	@scripts/setup

demo: setup ## run the loop on a simulated robot and print a summary
	@./aloe demo

test: setup ## run the tests (PYTEST_ARGS="-k supervisor" chooses)
	@$(PYTHON_BIN) -m pytest $(PYTEST_ARGS)

lerobot: ## run the tests of the bridges to LeRobot with LeRobot itself (Python 3.12 or newer, 6 GB)
	@scripts/test_lerobot $(PYTEST_ARGS)

fuzz: setup ## give every reader of files and frames wrong inputs (INPUTS=10000 each, FUZZ="mcap robot" chooses)
	@$(PYTHON_BIN) src/aloe_critic/test/fuzz.py --inputs $(INPUTS) $(FUZZ)

bench: setup ## run the benchmarks, write benchmarks/results/latest.json (ONLY=name)
	@$(PYTHON_BIN) benchmarks/run.py $(ONLY)

soak: setup ## run the simulated robot for HOURS of robot time, watch its processes (HOURS=8)
	@$(PYTHON_BIN) benchmarks/soak.py --hours $(HOURS)

evidence: setup ## compare the methods of improvement over seeds, write docs/evidence.md (hours; resumes)
	@$(PYTHON_BIN) benchmarks/evidence.py
	@$(PYTHON_BIN) benchmarks/evidence_report.py

lint: setup ## check style, types and formatting
	@$(PYTHON_BIN) -m ruff check .
	@$(PYTHON_BIN) -m ruff format --check .
	@$(PYTHON_BIN) -m mypy

format: setup ## format the code and order the imports
	@$(PYTHON_BIN) -m ruff format .
	@$(PYTHON_BIN) -m ruff check --select I --fix .

docs: setup ## write the reference from the code, build the site into build/docs, check links, file names and commands
	@cd scripts && ../$(PYTHON_BIN) docs_reference.py
	@NO_MKDOCS_2_WARNING=1 $(PYTHON_BIN) -m mkdocs build --strict --quiet
	@$(PYTHON_BIN) scripts/check_docs.py

lock: ## resolve the exact versions in requirements/constraints*.txt anew (needs uv)
	@scripts/lock

clean: ## remove what was built and cached; keeps .venv, bags and runs
	@rm -rf build install log .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find src benchmarks scripts -name __pycache__ -prune -exec rm -rf {} +
