# `make demo` runs the whole story on a real model and real data; `make test` passes the tests.
# Both first install what they need into .venv. QUICK=1 makes the demo a minute's work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

export GOMP_SPINCOUNT := 2000
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Empty: where it is set, each process of the tests compiles the package and the tests anew.
export PYTHONDONTWRITEBYTECODE :=
# By file, so that what a module's tests share is made once.
WORKERS := -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test slow fuzz cov lint benchmarks clean

demo: $(STAMP)
	$(BIN)/offsite demo $(if $(QUICK),--quick)

test: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS)

slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long $(WORKERS) --dist worksteal
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow

# Hostile bundles by the thousand: FUZZ_SECONDS=3600, or CASES=100000 whatever the time; failing cases go to fuzz-failures/.
FUZZ_SECONDS ?= $(if $(CASES),0,60)
fuzz: $(STAMP)
	$(BIN)/python -m tests.hostile.fuzz --seconds $(FUZZ_SECONDS) $(if $(CASES),--cases $(CASES)) $(if $(FIRST),--first $(FIRST))

cov: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(WORKERS) --cov --cov-report=term:skip-covered

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# torch first and alone: asked for by exact version, a plain CPU build may be taken where one is offered.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo .coverage .mypy_cache .ruff_cache .pytest_cache
