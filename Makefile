# make run   trains the tiny preset end to end (a few minutes on two cores) and draws its plots
# make test  checks style and types, then runs the whole test suite
# make claims        writes docs/claims.md from the results of the experiments
# make claims-check  runs the quick experiments again and compares every number (five minutes of processor time)
# make docs          builds the documentation site into build/site (Sphinx); make figures draws its figures
# make release-check builds wheel and sdist and tests them from another directory
# make aot   compiles kernels and training steps for TPU slices that are not there (libtpu; Linux; an hour on two cores)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= dev
PYTEST_ARGS ?= -n 2 --dist loadfile

.PHONY: run test fast newest aot lint facts claims claims-check docs figures release-check venv clean

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "prm_jax needs Python 3.11 or later, found " + sys.version.split()[0] + "; say make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[$(EXTRAS)]'
	@touch $@

run: venv
	$(BIN)/prm-jax train --preset tiny $(ARGS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

fast: venv
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow and not heavy and not optional"

# Every function of JAX that is used is used in one of these.
NEWEST := tests/rl tests/stats tests/pallas tests/models tests/search tests/verifiers tests/prime/step_test.py \
  tests/prime/published_test.py tests/prime/training_test.py tests/prm/train_test.py tests/prm/score_test.py \
  tests/runs/checkpoint_test.py tests/runs/fitting_test.py tests/rollouts/slots_test.py tests/cli_test.py

newest: venv
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow and not optional" $(NEWEST)

aot:
	$(MAKE) VENV=.venv-aot EXTRAS=dev,tpu venv
	.venv-aot/bin/python -m pytest tests/pallas/aot_tpu_test.py tests/models/aot_quantized_test.py tests/prime/aot_step_test.py

claims: venv
	$(BIN)/prm-jax claims

claims-check: venv
	$(BIN)/prm-jax claims --check
	$(BIN)/prm-jax claims --rerun exact cheap

docs:
	$(MAKE) VENV=.venv-docs EXTRAS=dev,docs venv
	.venv-docs/bin/sphinx-build -q -W --keep-going -c docs . build/site
	@echo "the site is in build/site; open build/site/index.html"

figures: venv
	$(BIN)/python docs/figures.py

release-check: venv
	$(BIN)/python -m tools.release_check

facts: venv
	$(BIN)/python -m tools.facts

clean:
	rm -rf $(VENV) .cache build dist *.egg-info
