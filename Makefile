# make setup       everything that tinykd needs, into .venv (and the Arm compiler, where that may be installed)
# make demo        set-up, then the whole road: a distilled student in an emulated nucleo-f746, and its report
# make test        set-up, then every test that this machine can run; skipped ones are listed with the reason
# make fuzz        5,000 random int8 models against TFLite Micro, 500 as generated C in the emulator on every core and for
#                  every goal; what breaks is kept in tests/regression
# make lint        ruff and mypy
# make wheel-test  build the wheel, install it on its own elsewhere, and use it
# make clean       remove what the above made, except .venv and runs/
#
# PYTHON=python3.12 chooses the interpreter; ARGS="-k plan" goes to pytest; PIP_ARGS goes to pip (an index with CPU
# wheels of torch, say); APT=no keeps the set-up from installing system packages.

VENV ?= .venv
BOARD ?= nucleo-f746
RECIPE ?= mnist5k-kd
ARGS ?=
APT ?= yes
export VENV APT PYTHON PIP_ARGS

BIN := $(VENV)/bin
STAMP := $(VENV)/.tinykd-setup

.PHONY: setup arm demo test fuzz lint format wheel-test clean
.DELETE_ON_ERROR:

setup: $(STAMP)
	@scripts/setup-arm.sh
	@echo "setup: done. Try: $(BIN)/tinykd doctor"

# Repeated only when what is to be installed changes.
$(STAMP): pyproject.toml constraints.txt scripts/setup-python.sh
	@scripts/setup-python.sh
	@touch $@

arm:
	@scripts/setup-arm.sh --required

demo: $(STAMP) arm
	$(BIN)/tinykd run $(RECIPE) --board $(BOARD)
	@echo
	@echo "demo: the report is at $(CURDIR)/runs/$(RECIPE)/report/index.html"

test: setup
	$(BIN)/python -m pytest $(ARGS)

fuzz: $(STAMP)
	$(BIN)/python -m benchmarks.fuzz --count 5000 --jobs 2 --save-failures --out benchmarks/results/fuzz.json
	$(BIN)/python -m benchmarks.fuzz --engine --count 500 --jobs 2 --save-failures --out benchmarks/results/fuzz-engine.json

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel-test: $(STAMP)
	@scripts/wheel-test.sh

clean:
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find tinykd tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
