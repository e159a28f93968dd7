.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
override RUN := runs/demo
HELD_OUT := samples-held-out

# one process per core, each with one thread; the tests of a file share its fixtures
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

.PHONY: help demo pretrain-nano test test-slow lint type docs format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/ready: setup.cfg constraints.txt
	@echo "Setting up $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

demo: $(VENV)/ready ## teach the built-in model a house style, offline and without a GPU, and end with PDFs
	rm -rf $(RUN)
	@echo "== 1. Before: what typst-nano writes for records of three projects that it will not be trained on"
	$(BIN)/typst-lit test --config demo --run_dir $(RUN)/before --data.test_path $(HELD_OUT)
	@echo "== 2. Fit: a LoRA adapter on the 4-bit model, from 45 samples of a house style that it has never seen"
	$(BIN)/typst-lit fit --config demo --run_dir $(RUN)/fit
	@echo "== 3. After"
	$(BIN)/typst-lit test --config demo --run_dir $(RUN)/after --data.test_path $(HELD_OUT) \
	  --model.adapter_path $(RUN)/fit
	@echo "== 4. New records to documents"
	$(BIN)/typst-lit predict --config demo --run_dir $(RUN)/fit --data.predict_path $(HELD_OUT) \
	  --model.adapter_path $(RUN)/fit
	@echo
	@echo "PDFs:                 $(RUN)/fit/predictions"
	@echo "Pages, before, after: $(RUN)/before/test/report.html, $(RUN)/after/test/report.html"
	@echo "Curves and pages:     $(BIN)/tensorboard --logdir $(RUN)"

NANO := runs/nano
PRETRAIN := $(BIN)/typst-lit fit --config benchmarks/nano/pretrain.yaml
SYNTHETIC := --data.source.init_args
HARD := '{count: 22000, seed: 3, copy_fraction: 0.2, hard_fraction: 0.6, brief_fraction: 0, random_style_fraction: 0}'

pretrain-nano: $(VENV)/ready ## pretrain the built-in base model again (6 1/2 hours on two cores)
	$(BIN)/python -m benchmarks.nano.weights init $(NANO)/random
	@echo "== 1. Copying: short strings of words to repeat, many small steps"
	$(PRETRAIN) --run_dir $(NANO)/copying --model.base_model $(NANO)/random --model.schedule constant \
	  --model.learning_rate 2e-3 --data.batch_size 8 $(SYNTHETIC) '{count: 24000, seed: 1, copy_fraction: 1.0, hard_fraction: 0, brief_fraction: 0, random_style_fraction: 0}'
	@echo "== 2. Documents"
	$(PRETRAIN) --run_dir $(NANO)/documents --model.base_model $(NANO)/copying/model/best \
	  --model.learning_rate 2e-3 --data.batch_size 6 $(SYNTHETIC) '{count: 13000, seed: 2, copy_fraction: 0.1, hard_fraction: 0, brief_fraction: 0, random_style_fraction: 0}'
	@echo "== 3. Documents that are hard to copy; the learning rate falls after the first 2364 steps"
	$(PRETRAIN) --run_dir $(NANO)/hard --model.base_model $(NANO)/documents/model/best --model.learning_rate 2e-3 \
	  --model.schedule constant --trainer.max_steps 2364 $(SYNTHETIC) $(HARD)
	$(PRETRAIN) --run_dir $(NANO)/hard --model.base_model $(NANO)/documents/model/best --model.learning_rate 2e-3 \
	  --ckpt_path last $(SYNTHETIC) $(HARD)
	@echo "== 4. Many brief blocks, to predict which block comes next"
	$(PRETRAIN) --run_dir $(NANO)/brief --model.base_model $(NANO)/hard/model/best --model.learning_rate 1.5e-3 \
	  $(SYNTHETIC) '{count: 13000, seed: 4, copy_fraction: 0.05, hard_fraction: 0.7, brief_fraction: 0.6, random_style_fraction: 0}'
	@echo "== 5. More of them, at a lower rate"
	$(PRETRAIN) --run_dir $(NANO)/more --model.base_model $(NANO)/brief/model/best --model.learning_rate 8e-4 \
	  --model.schedule constant --trainer.max_steps 1388 \
	  $(SYNTHETIC) '{count: 27500, seed: 5, copy_fraction: 0.03, hard_fraction: 0.75, brief_fraction: 0.65, random_style_fraction: 0}'
	@echo "== 6. Styles that occur only once, so that the model learns a new style quickly"
	$(PRETRAIN) --run_dir $(NANO)/random_styles --model.base_model $(NANO)/more/model/last --model.learning_rate 1e-3 \
	  --trainer.max_steps 4700 $(SYNTHETIC) '{count: 22000, seed: 6, copy_fraction: 0.03, hard_fraction: 0.6, brief_fraction: 0.6, random_style_fraction: 0.45}'
	@echo "== 7. The same mixture with fewer of those"
	$(PRETRAIN) --run_dir $(NANO)/practice --model.base_model $(NANO)/random_styles/model/best
	$(BIN)/python -m benchmarks.nano.weights export $(NANO)/practice/model/best typst_lit/model/nano

test: $(VENV)/ready lint type docs ## check style, types and docs, run the tests
	$(PYTEST)

test-slow: $(VENV)/ready ## run the slow tests too
	$(PYTEST) -m 'slow or not slow'

lint: $(VENV)/ready ## check the style, the wording and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/check_words
	$(BIN)/python .ci/check_layers

type: $(VENV)/ready ## check the types
	$(BIN)/mypy

docs: $(VENV)/ready ## build the docs of the Python API in build/docs; warnings are errors
	$(BIN)/sphinx-build -q -W --keep-going docs build/docs

format: $(VENV)/ready ## format the code, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, runs and build files
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
