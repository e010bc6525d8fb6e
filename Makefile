# Two commands matter: `make demo` and `make test`. Both set up what they need; nothing here wants root.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
INSTALLER := tools/install.py
# Many containers set it. Without bytecode every process would compile torch anew, which takes ten seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test check check-types check-rest run-tests soak bench clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(DEV_STAMP)  ## virtual environment with everything, in .venv

# TORCH_INDEX=URL: where torch comes from; by default its index of CPU wheels. Empty: the default index, with CUDA.
$(RUN_STAMP): pyproject.toml constraints.txt $(INSTALLER)
	@$(PYTHON) $(INSTALLER)

$(DEV_STAMP): pyproject.toml constraints.txt $(INSTALLER)
	@$(PYTHON) $(INSTALLER) --dev

demo: $(RUN_STAMP)  ## one prompt to one video, through the whole service, then stop everything
	@$(BIN)/python -m demo.run

serve: $(RUN_STAMP)  ## the same service, kept up: http://127.0.0.1:8000
	@$(BIN)/ivmix up

check: $(DEV_STAMP)  ## lint, types, import rules, wording, sizes
	@$(MAKE) --no-print-directory --jobs --keep-going --output-sync=target check-types check-rest

check-types:  # takes longer than all others together
	$(BIN)/basedpyright

check-rest:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python -m tests.wording
	$(BIN)/python -m tests.sizes

test: $(DEV_STAMP)  ## check, and every test that needs no GPU
	@$(MAKE) --no-print-directory check-rest
	@$(MAKE) --no-print-directory --jobs --keep-going check-types run-tests

run-tests:  # types are checked meanwhile: one process, and many tests wait
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not slow" --hypothesis-profile=few \
		-n 6 --dist worksteal

MINUTES ?= 30
soak: $(DEV_STAMP)  ## long tests with random seeds: faults, fuzzing, resume; MINUTES=30
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

bench: $(DEV_STAMP)  ## seconds per clip with the demo models; what one API process carries
	$(BIN)/python -m benchmarks.demo_clip
	$(BIN)/python -m benchmarks.api_load

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .venv-clients .pytest_cache .ruff_cache .import_linter_cache
