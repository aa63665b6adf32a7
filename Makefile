# Needs Python 3.11+ and make; everything else goes into a virtual environment here.
#
#   make run                        the default experiment; ARGS="seed=1 task=digits" is passed on
#   make figures                    every figure and table of paper_figures/ from its committed CSV files
#   make notebooks                  runs notebooks/ anew and keeps their outputs
#   make test                       all tests that need neither torch nor a download
#   make test-parity, test-real     the same against torch and peft; on the real bases
#   make launchers                  adds Ray and Optuna for sweeps: launcher=ray_local, sweeper=optuna
#   make fuzz                       hostile packets for about 3 minutes; RUNS, FUZZ_SECONDS set how long
#   make PYTHON=python3.12 ...      another interpreter for a new environment

PYTHON ?= python3
ARGS ?=
TORCH_INDEX ?=
# Processes that share the files of `make test`.
TESTERS ?= 2

VENV := .venv
# Apart, so that `make test` keeps proving that nothing needs torch.
PARITY := .venv-parity

# Atheris, the fuzzer that is guided by coverage, has wheels for Linux alone.
FUZZ := .venv-fuzz
RUNS ?= 20000
FUZZ_SECONDS ?= 60

.PHONY: run figures notebooks test test-parity test-real launchers fuzz lint format

run: $(VENV)/.installed
	$(VENV)/bin/python -m experiments.compare $(ARGS)

figures: $(VENV)/.installed
	$(VENV)/bin/python -m paper_figures $(ARGS)

notebooks: $(VENV)/.installed
	$(VENV)/bin/python notebooks/run.py $(ARGS)

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -n $(TESTERS) --dist loadfile $(ARGS)

test-parity: $(PARITY)/.installed
	$(PARITY)/bin/python -m pytest -m parity $(ARGS)

test-real: $(PARITY)/.installed
	$(PARITY)/bin/python -m pytest -m real $(ARGS)

launchers: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt -r requirements-launchers.txt

fuzz: $(FUZZ)/.installed
	$(FUZZ)/bin/python -m tests.fuzz.campaign --mutants $(RUNS) $(ARGS)
	$(FUZZ)/bin/python -m tests.fuzz.bombs
	SOLAR_FUZZ_EXAMPLES=2000 $(FUZZ)/bin/python -m pytest tests/test_hostile.py -k any_fields
	$(FUZZ)/bin/python -m tests.fuzz.guided -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=$(FUZZ)/

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/.installed: requirements.txt
	$(call environment,$(VENV))
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	@touch $@

$(PARITY)/.installed: requirements.txt requirements-parity.txt requirements-launchers.txt
	$(call environment,$(PARITY))
	$(PARITY)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		-r requirements.txt -r requirements-parity.txt -r requirements-launchers.txt
	@touch $@

$(FUZZ)/.installed: requirements.txt requirements-fuzz.txt
	$(call environment,$(FUZZ))
	$(FUZZ)/bin/python -m pip install --quiet -r requirements.txt -r requirements-fuzz.txt
	@touch $@

# Make the environment $(1) unless it is there and whole: one cut short by Ctrl-C has no pip.
define environment
@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
@$(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(1)
@echo "installing into $(1) (a few minutes the first time)"
endef
