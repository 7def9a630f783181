# Each target is lines a person could type. `make demo` and `make test` are the README's two.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# constraints.txt has pins of its own for Python 3.10, where newer builds do not exist.
# compat: a path entry. The default finder loses to a folder named kronos_qlib, such as this
# clone, in the working directory of a script.
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt \
	--config-settings editable_mode=compat --editable

.PHONY: demo notebooks test lint types browser tests nightly docs

demo: $(VENV)/demo.ready
	$(BIN)/python data_prep/make_demo_market.py demo/market --overwrite
	$(BIN)/qrun workflows/workflow_kronos.yaml
	$(BIN)/qrun workflows/workflow_kronos_alpha.yaml
	$(BIN)/qrun workflows/workflow_lightgbm.yaml
	$(BIN)/kronos-qlib compare kronos kronos_alpha lightgbm --html demo/comparison.html
	@echo ""
	@echo "Next: look at demo/comparison.html; then, with $(VENV) activated,"
	@echo "  kronos-qlib score kronos_alpha --top 10    the newest day, ranked"
	@echo "  kronos-qlib forecast bars.csv              of your own bars, a CSV or Parquet file"
	@echo "  kronos-qlib data convert bars.csv data/mine    a Qlib folder of them: docs/how-to/own-bars.md"

# Runs each from top to bottom and keeps what it shows; a few minutes.
notebooks: $(VENV)/demo.ready
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False \
		--ExecutePreprocessor.store_widget_state=False notebooks/*.ipynb

test: lint types browser tests

# The page is tested in chromium, which pip does not bring: what is missing is said before the tests
# begin, and those tests alone are skipped.
browser: $(VENV)/test.ready
	@$(BIN)/python -c "import os, shutil; names = ('chromium', 'chromium-browser', \
	'google-chrome', 'google-chrome-stable', 'chrome'); found = os.environ.get('KRONOS_CHROMIUM') \
	or next(filter(None, map(shutil.which, names)), None); print('tests/browser: ' + (found or \
	'no chromium, so these tests are skipped unless playwright has one of its own: ' \
	'apt-get install chromium, or python -m playwright install chromium'))"

lint: $(VENV)/test.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/test.ready
	$(BIN)/mypy

tests: $(VENV)/test.ready
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Every property on new examples, ten times as many; an hour or so. What fails prints how to
# repeat it.
nightly: $(VENV)/test.ready
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=nightly --numprocesses 2

# The site, into site/: a broken link, a reference without a docstring beyond the known ones, a
# setting without a meaning or an example that fails stops it. Needs no network once installed.
docs: export NO_MKDOCS_2_WARNING = 1  # a notice of the theme's authors, not about this site
docs: $(VENV)/docs.ready
	$(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m pytest tests/unit/test_docs.py tests/integration/test_examples.py

$(VENV)/python.ready:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "open('$@', 'w').close()"

# What the tests need holds all that the demo needs: it is not installed twice.
$(VENV)/demo.ready: $(or $(wildcard $(VENV)/test.ready),$(VENV)/python.ready) pyproject.toml \
		constraints.txt
	$(if $(wildcard $(VENV)/test.ready),,@echo "Installing into $(VENV): a few minutes the first time")
	$(if $(wildcard $(VENV)/test.ready),,$(INSTALL) ".[all]")
	$(BIN)/python -c "open('$@', 'w').close()"

$(VENV)/test.ready: $(VENV)/python.ready pyproject.toml constraints.txt
	@echo "Installing into $(VENV), with the tools for development: a few minutes the first time"
	$(INSTALL) ".[dev]"
	$(BIN)/python -c "open('$@', 'w').close()"

$(VENV)/docs.ready: $(VENV)/python.ready pyproject.toml constraints.txt
	@echo "Installing into $(VENV), with what the documentation needs: a few minutes the first time"
	$(INSTALL) ".[docs]"
	$(BIN)/python -c "open('$@', 'w').close()"
