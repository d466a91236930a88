# make demo    the whole path on simulated data: pretrain on two emulated nodes, finetune, reconstruct, report
# make test    lint, types, import layers and all tests but those of real hosts
# make test-cluster   real hosts on this machine, by network namespaces: faults of nodes and links; needs root
# make venv    only the environment (.venv), with the versions of constraints.txt

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
FOLDERS := checkpoints_schema datasets trainer launch
TREE := build/tree

# DeepSpeed compiles a small extension at first use and looks for ninja on PATH.
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo test test-cluster lint pytest venv tree schemas clean

help:
	@sed -n 's/^# //p' Makefile

demo: venv
	$(BIN)/fmri2img demo $(ARGS)

test: lint pytest

pytest: venv
	$(BIN)/pytest --ignore tests/cluster $(ARGS)

test-cluster: venv
	$(BIN)/pytest tests/cluster $(ARGS)

lint: venv tree
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	cd $(TREE) && $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache fmri2img tests
	cd $(TREE) && PYTHONPATH=. $(BIN)/lint-imports --config $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.import_linter_cache

# The folders as they are imported, for the tools that do not know setuptools' package-dir.
tree:
	rm -rf $(TREE)
	mkdir -p $(TREE)/fmri2img
	ln -s $(CURDIR)/fmri2img/* $(addprefix $(CURDIR)/,$(FOLDERS)) $(TREE)/fmri2img/
	ln -s $(CURDIR)/tests $(TREE)/tests

venv: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: pass PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

# After a change of a manifest's models that old readers accept.
schemas: venv
	$(BIN)/python -P -c 'from fmri2img.checkpoints_schema.manifest import write_schema; print(write_schema())'
	$(BIN)/python -P -c 'from fmri2img.checkpoints_schema.exported import write_schema; print(write_schema())'
	$(BIN)/python -P -c 'from fmri2img.datasets.manifest import write_schema; print(write_schema())'

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
