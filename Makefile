.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo
SAMPLES := tests/data/reports.json
QUIET := --trainer.accumulate_grad_batches 1 --warmup.steps 10 --checkpoint.every_n_steps 1000
GREEDY := --model.generation.temperature 0 --model.generation.repetition_penalty 1 --model.generation.max_tokens 700

.PHONY: help demo pretrain-nano test test-slow lint type format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/ready: setup.cfg constraints.txt
	@echo "Setting up $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

demo: $(VENV)/ready ## fit and predict on sample records, offline and without a GPU, and end with PDFs
	rm -rf $(RUN)
	@echo "== 1. A stand-in for a base model: a tiny Qwen3 that has learned the 12 samples by heart"
	$(BIN)/python -m typst_lit.model.tiny $(RUN)/random $(SAMPLES)
	$(BIN)/typst-lit fit --data.path $(SAMPLES) --data.val_fraction 0 --run_dir $(RUN)/base \
	  --model.base_model $(RUN)/random --model.adapter null --model.use_4bit false \
	  --model.learning_rate 5e-3 --trainer.max_epochs 35 --model.gradient_checkpointing false --eval.every_n_epochs 0 $(QUIET)
	@echo "== 2. The main job: that model in 4 bits, with a LoRA adapter, on two projects, validated on the third"
	$(BIN)/typst-lit fit --data.path $(SAMPLES) --run_dir $(RUN)/adapter $(GREEDY) \
	  --model.base_model $(RUN)/base/model/best --trainer.max_epochs 3 --eval.every_n_epochs 3 $(QUIET)
	@echo "== 3. Records to Typst source and PDF"
	$(BIN)/typst-lit predict --data.predict_path $(SAMPLES) --run_dir $(RUN)/adapter $(GREEDY) \
	  --model.base_model $(RUN)/base/model/best --model.adapter_path $(RUN)/adapter --predict.compile true
	@echo "== 4. How good are they?"
	$(BIN)/typst-lit score $(RUN)/adapter/predictions/predictions.json --references $(SAMPLES)
	@echo "The PDFs: $(RUN)/adapter/predictions"
	@echo "The curves and pages: $(BIN)/tensorboard --logdir $(RUN)"

NANO := runs/nano
PRETRAIN := $(BIN)/typst-lit fit --config configs/pretrain_nano.yaml
MADE_UP := --data.source.init_args
HARD := '{count: 22000, seed: 3, copying: 0.2, hard: 0.6, brief: 0}'

pretrain-nano: $(VENV)/ready ## train a small base model on made-up reports (3 hours on two cores)
	$(BIN)/python -m typst_lit.synthesis.nano $(NANO)/random
	@echo "== 1. Copying: short strings of words to repeat, many small steps"
	$(PRETRAIN) --run_dir $(NANO)/copying --model.base_model $(NANO)/random --model.schedule constant \
	  --model.learning_rate 2e-3 --data.batch_size 8 $(MADE_UP) '{count: 24000, seed: 1, copying: 1.0, hard: 0, brief: 0}'
	@echo "== 2. Documents"
	$(PRETRAIN) --run_dir $(NANO)/documents --model.base_model $(NANO)/copying/model/best \
	  --model.learning_rate 2e-3 --data.batch_size 6 $(MADE_UP) '{count: 13000, seed: 2, copying: 0.1, hard: 0, brief: 0}'
	@echo "== 3. Documents that are hard to copy; the learning rate falls after the first 2364 steps"
	$(PRETRAIN) --run_dir $(NANO)/hard --model.base_model $(NANO)/documents/model/best --model.learning_rate 2e-3 \
	  --model.schedule constant --trainer.max_steps 2364 $(MADE_UP) $(HARD)
	$(PRETRAIN) --run_dir $(NANO)/hard --model.base_model $(NANO)/documents/model/best --model.learning_rate 2e-3 \
	  --ckpt_path last $(MADE_UP) $(HARD)
	@echo "== 4. And many brief blocks, to know what comes next"
	$(PRETRAIN) --run_dir $(NANO)/brief --model.base_model $(NANO)/hard/model/best

test: $(VENV)/ready lint type ## check style and types, run the tests
	$(BIN)/python -m pytest

test-slow: $(VENV)/ready ## run the longer proofs too
	$(BIN)/python -m pytest -m 'slow or not slow'

lint: $(VENV)/ready ## check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/ready ## check the types
	$(BIN)/mypy

format: $(VENV)/ready ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
