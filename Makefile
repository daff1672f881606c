# Entry points. Every target that runs something first makes .venv (envs/setup.sh). None needs root.
#
# PYTHON=/path/to/python3.13   the Python to make .venv with, 3.11 to 3.14; default: 3.12 or what uv finds
# CUDA=12                      make setup: torch for older NVIDIA drivers (525 to 575) and V100; CUDA=13 undoes it
# ARGS="..."                   more arguments for the command that demo or a test target runs
# UPGRADE=1                    make lock: the newest versions inside pyproject.toml's ranges

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full test-all lint lock audit docs clean
MAKEFLAGS += --no-print-directory

# a process per core; more than four gain nothing beside the one that runs the study
PYTEST = OMP_NUM_THREADS=1 python -m pytest -q --numprocesses logical --maxprocesses 4 --dist loadscope \
    --no-loadscope-reorder

export PATH := $(CURDIR)/.venv/bin:$(CURDIR)/.uv/bin:$(PATH)
COMPILE = uv pip compile --quiet --universal --generate-hashes --no-annotate \
    --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

help:       ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup:      ## the environment .venv, made or brought up to date (the other targets do this by themselves)
	@PYTHON="$(PYTHON)" CUDA="$(if $(findstring command,$(origin CUDA)),$(CUDA))" bash envs/setup.sh

demo: setup ## the miniature study, start to report: minutes on a laptop's CPU
	@augbench run --configfile config/demo.yaml $(ARGS)

test: setup ## the tests
	@$(PYTEST) -m "not full" $(ARGS)

test-full: setup ## the heavier checks
	@$(PYTEST) -m full $(ARGS)

test-all: setup ## both in one go, without the longest studies: what CI runs
	@$(PYTEST) -m "not long" $(ARGS)

lint: setup ## style, types and the workflow's own lint
	ruff check
	ruff format --check
	snakefmt --check Snakefile workflow
	snakemake --lint
	mypy

lock: setup ## the locks and the files for conda (UPGRADE=1: newest versions)
	@$(COMPILE) --python-version 3.11 --extra dev pyproject.toml -o envs/requirements.lock
	@cp envs/requirements.lock envs/cuda12.lock  # uv keeps the versions that it finds there
	@$(COMPILE) --python-version 3.11 --extra dev --override envs/cuda12.in pyproject.toml -o envs/cuda12.lock
	@$(COMPILE) --python-version 3.8 envs/bootstrap.in -o envs/bootstrap.lock
	@python envs/make_conda.py > envs/conda.yaml
	@python envs/make_conda.py --post-deploy > envs/conda.post-deploy.sh

audit: setup ## known vulnerabilities of the locked packages; status 2 if they could not be looked up
	@python envs/audit.py

docs: setup ## docs/configuration.md from the schema, the picture in docs/architecture.md, tables of docs/measured
	@python -m augbench.config.manual > docs/configuration.md
	@python docs/make_workflow.py
	@python docs/make_tables.py

clean:      ## remove the demo's results (downloads and .venv stay)
	rm -rf results/demo
