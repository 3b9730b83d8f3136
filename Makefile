# make quickstart   install, then train a real 135M model on two cores in minutes
# make test         install if needed, then every check and every test
# Both skip the installation when nothing changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two test files at once: the tests compute with one thread each. The files stay in order, the long ones early.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
# A GPU host is one where the driver answers.
LIST := $(if $(shell nvidia-smi -L 2>/dev/null),gpu,cpu)

.PHONY: quickstart test light lint docs site golden gpu torture installations clean

quickstart: $(VENV)/installed
	$(BIN)/fastft run recipes/quickstart.toml --resume

test: lint
	$(PYTEST)

# The tests that need no torch: seconds.
light: $(VENV)/installed
	$(PYTEST) --ignore tests/engine --ignore tests/gpu -m "not slow"

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.complexity

# The program writes docs/reference; a test fails when it is stale.
docs: $(VENV)/installed
	$(BIN)/python -m tests.docs

# docs/ and this README as pages in build/site; a dead link between them fails.
site: build/site-venv/installed
	build/site-venv/bin/python docs/build_site.py

build/site-venv/installed: requirements/site.txt
	$(PYTHON) -m venv build/site-venv
	build/site-venv/bin/python -m pip install --quiet -r requirements/site.txt
	touch $@

# Every way of installing, in fresh environments with the newest versions; QUICK=--quick: pip alone; TRAIN=--train.
installations: build/tools-venv/installed
	build/tools-venv/bin/python -m benchmarks.installations $(QUICK) $(TRAIN)

build/tools-venv/installed: requirements/tools.txt
	$(PYTHON) -m venv build/tools-venv
	build/tools-venv/bin/python -m pip install --quiet -r requirements/tools.txt
	touch $@

# The plan of each shipped recipe: a test fails when it changes, so that reviewers see the effect of a default.
golden: $(VENV)/installed
	$(BIN)/python -m tests.golden

# On a host with a GPU and PyTorch of its own: all that waits for one, under 9 minutes a call, until nothing is left.
# WHEELS names a folder of carried wheels (benchmarks/fetch_wheels.sh) where no package index can be reached.
gpu:
	$(PYTHON) -m benchmarks.gpu_session

# Faults by the hundred, in an hour at most; goes on where it was stopped, and writes docs/reliability.md. Outcomes of
# another version are forgotten with `make torture AGAIN=all`.
torture: $(VENV)/installed
	nice $(BIN)/python -m torture $(if $(AGAIN),--again $(AGAIN))

# torch first, with its dependencies; then pinned lists without dependencies: see requirements/cpu.txt.
$(VENV)/installed: requirements/$(LIST).txt requirements/cpu.txt requirements/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/$(LIST).txt -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
