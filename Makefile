# Every target makes the environment it needs. PYTHON picks the interpreter.
PYTHON ?= python3
BIN := .venv/bin
LINT := .venv-lint/bin
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

.PHONY: demo test test-slow lint tables docs clean

demo: .venv/.train
	$(BIN)/softmaxfree train digits --trainer.max_epochs 5  # of 16: minutes on a slow machine, too

test: .venv/.dev
	$(TEST) -m "not slow"

test-slow: .venv/.dev
	$(TEST) -m slow

lint: .venv/.dev .venv-lint/.done
	$(LINT)/ruff check .
	$(LINT)/ruff format --check .
	$(LINT)/codespell
	$(LINT)/pydoclint -q src
	PYTHONPATH=src $(LINT)/lint-imports
	$(BIN)/mypy

tables: .venv/.dev
	$(BIN)/python docs/fill.py

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo site/index.html

.venv/.train .venv/.docs .venv/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e ".[$(subst .,,$(@F))]"
	touch $@

# apart from .venv: pydoclint and jsonargparse bring two packages that claim the same folder
.venv-lint/.done: pyproject.toml
	test -x $(LINT)/python || $(PYTHON) -m venv .venv-lint
	$(LINT)/python -m pip install --quiet ruff codespell pydoclint import-linter
	touch $@

clean:
	rm -rf .venv .venv-lint site dist
