# `make demo` runs the main job, `make test` the tests. Every target makes .venv, or reuses it, and installs what it needs.
#
# Variables: PYTHON (the interpreter of .venv), WORKERS (processes of the test run), and PIP_FLAGS, passed to pip:
# a machine whose pip finds only the CUDA build of torch can ask for the small CPU build with
#     make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON    ?= python3
PIP_FLAGS ?=
WORKERS   ?= 2

VENV   := .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python
SPHINX := $(PY) -m sphinx -W --keep-going

.PHONY: demo test docs bench lint clean
.NOTPARALLEL:
.SECONDARY:

demo: $(VENV)/.installed-demo
	$(BIN)/otprox demo

# Doctests run under torch's own defaults, as a reader would type them; the tests run in float64 (tests/conftest.py).
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(PY) -m pytest -q --doctest-modules otprox
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --cov --cov-fail-under=90

docs: $(VENV)/.installed-docs
	$(SPHINX) -b doctest -D plot_gallery=0 docs docs/_build/doctest
	$(SPHINX) -b html docs docs/_build/html

# One process a script, so that peak memory is its own.
bench: $(VENV)/.installed-bench
	@set -e; for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(PY) $$script; done

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist docs/_build docs/auto_tutorials docs/sg_execution_times.rst .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*

# One stamp an extra; a new pin or a new range installs again.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[$*]'
	@touch $@

$(PY):
	$(PYTHON) -m venv $(VENV)
