# make book | test | lab | lint | bench | clean. Each sets itself up: a .venv in this folder, made once.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# uv, where there is one, installs in a tenth of the time; it does not read pip's settings, so pass them on
LINKS := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS))
export PATH := $(CURDIR)/$(BIN):$(PATH)
# figures are the same whatever matplotlib's settings and list of fonts at home are; the list may name fonts that are gone
export MPLCONFIGDIR := $(CURDIR)/.venv/matplotlib

.PHONY: book test lab lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make book   run the notebooks and publish the book to book/_build/html"
	@echo "make test   run the test suite"
	@echo "make lab    open the notebooks in JupyterLab"
	@echo "make lint   check style and that notebooks carry no outputs"
	@echo "make bench CBSD68=folder KODAK24=folder   measure the weights beside other denoisers"
	@echo "make clean  delete what these made (the .venv too)"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "KUnet needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@if command -v uv >/dev/null; then uv pip install --python $(BIN)/python $(LINKS) -c constraints.txt -e '.[dev]'; \
	else $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'; fi
	@touch $@

book: $(READY)
	@$(BIN)/python book/build.py

test: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not alone"
	@$(BIN)/python -m pytest -m alone

lab: $(READY)
	@$(BIN)/jupyter lab notebooks

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/nbstripout --verify --keep-id --extra-keys "metadata.papermill cell.metadata.papermill metadata.language_info" notebooks/*.ipynb
	@echo "lint: clean"

bench: $(READY)
	@test -n "$(CBSD68)" -a -n "$(KODAK24)" || { echo "make bench CBSD68=folder KODAK24=folder"; exit 2; }
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[bench]'
	@$(BIN)/python benchmarks/denoise.py cbsd68=$(CBSD68) kodak24=$(KODAK24)

clean:
	rm -rf .venv book/_build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
