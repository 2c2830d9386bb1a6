# `make demo` and `make test` work on a machine that has only Python >= 3.10, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
DOCS_STAMP := $(VENV)/.docs-ready
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.ready
# The machine may keep wheels on disk (a CPU build of torch, say): uv reads that only from its own variable.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# How the commands get on the path: the last line of `make setup` and `make demo`.
ACTIVATE = @echo "rlhf-train and the other commands are on your path after: source $(BIN)/activate"

.DEFAULT_GOAL := help
.PHONY: help setup demo rounds test test-slow test-vllm test-browser test-harness exact kl algorithms mutants kills check-gpu lint audit licences format lock wheel docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 14

setup: $(STAMP)  ## virtual environment, pinned packages, editable install (skipped when done)
	$(ACTIVATE)

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)  ## the whole pipeline on the embedded world: SFT, reward model, PPO, DPO, evaluation, report
	$(BIN)/rlhf-pipeline pipeline=demo
	$(ACTIVATE)

rounds: $(STAMP)  ## three rounds of collecting, labelling (simulated), reward model and PPO on the embedded world
	$(BIN)/rlhf-pipeline pipeline=rounds
	$(ACTIVATE)

test: $(STAMP)  ## the fast tests, one process per core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: $(STAMP)  ## the slow tests: the exact-optimum suite, three seeds of the demo
	$(BIN)/python -m pytest -m slow

test-vllm: $(VLLM_STAMP)  ## the tests against vLLM itself, on CPU, in an environment of their own
	VLLM_CPU_KVCACHE_SPACE=1 OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest -m vllm tests/rollout

test-browser: $(STAMP)  ## the labelling page in Chromium (apt-get install chromium)
	$(BIN)/uv pip install --quiet --python $(BIN)/python "playwright>=1.50" "axe-playwright-python>=0.1.4"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/feedback

test-harness: $(STAMP)  ## tasks of lm-eval itself, in an environment of its own beside the project's packages
	test -x .venv-harness/bin/python || $(BIN)/python -m venv .venv-harness
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
		> "$$(.venv-harness/bin/python -c 'import site; print(site.getsitepackages()[0])')/project.pth"
	.venv-harness/bin/python -m pip install --quiet --disable-pip-version-check "lm-eval>=0.4.12"
	OMP_NUM_THREADS=1 .venv-harness/bin/python -m pytest -m slow tests/commands/test_harness.py

test-postgres: $(STAMP)  ## the store of feedback on a real PostgreSQL (apt-get install postgresql)
	$(BIN)/uv pip install --quiet --python $(BIN)/python "psycopg[binary]>=3.2"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/feedback/test_postgresql.py

# vLLM pins versions of its own. The three packages left out are built for CUDA and break beside a CPU build of torch;
# text models need none of them.
$(VLLM_STAMP): pyproject.toml requirements-vllm.txt
	@test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check uv
	printf 'torchvision; python_version < "0"\ntorchaudio; python_version < "0"\ntorchcodec; python_version < "0"\n' \
		> $(VLLM_VENV)/left-out.txt
	$(VLLM_BIN)/uv pip install --quiet --python $(VLLM_BIN)/python --override $(VLLM_VENV)/left-out.txt \
		-r requirements-vllm.txt --editable .
	@touch $@

exact: $(STAMP)  ## the exact-optimum table of the README
	$(BIN)/python scripts/exact_table.py

kl: $(STAMP)  ## ten runs of the demo's PPO stage: is the mean KL of the last ten iterations within 10 % of its target?
	$(BIN)/python scripts/kl_holds.py

algorithms: $(STAMP)  ## algorithms on the embedded world, three seeds, one table (docs/results.md; about two hours)
	$(BIN)/python scripts/algorithms_table.py

mutants: $(STAMP)  ## put each known bug in on purpose and count how many the tests catch
	$(BIN)/python scripts/mutants.py

kills: $(STAMP)  ## kill 100 runs with SIGKILL at random moments, resume them, compare their ends
	$(BIN)/python scripts/kill_resume.py

check-gpu: $(STAMP)  ## what only a GPU can answer, in eight minutes (without one: python scripts/check_gpu.py --cpu)
	$(BIN)/python scripts/check_gpu.py

lint: $(STAMP)  ## ruff, types, dead code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture

audit: $(STAMP)  ## check the lock against published advisories, and the licences of what is in it
	$(BIN)/python scripts/licences.py --check
	$(BIN)/uv tool run --quiet "pip-audit>=2.10,<3" --requirement requirements.lock --no-deps --disable-pip --strict

licences: $(STAMP)  ## list the packages of the lock with their licences
	$(BIN)/python scripts/licences.py

format: $(STAMP)  ## rewrite the files as ruff likes them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(STAMP)  ## resolve pyproject.toml into requirements.lock again
	@# CUDA packages are left out of the lock: torch brings its own where it needs them, and a CPU build needs none.
	UV_FIND_LINKS= $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra dev --no-annotate \
		--no-header --constraint requirements.in pyproject.toml | grep -vE '^(nvidia-|triton|cuda-)' > requirements.lock.new
	mv requirements.lock.new requirements.lock
	UV_FIND_LINKS= $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --group docs --no-annotate \
		--no-header --constraint requirements.lock --output-file requirements-docs.lock

wheel: $(STAMP)  ## build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

docs: $(DOCS_STAMP)  ## the documentation site in site/; fails at a broken link or docstring (Python >= 3.11)
	$(BIN)/python scripts/build_docs.py

$(DOCS_STAMP): $(STAMP) requirements-docs.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements-docs.lock
	@touch $@

clean:  ## remove the virtual environment, outputs and caches
	rm -rf $(VENV) $(VLLM_VENV) .venv-trl-* dist outputs build site .pytest_cache .mypy_cache .ruff_cache
