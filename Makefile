# Every target sets up what it needs: a virtual environment in .venv, with the exact versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow coverage lint format notebooks docs pictures benchmarks benchmarks-gpu zoo clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

# In the environment of `make demo` the package alone, in that of all other targets also what tests and docs need.
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "diffusion_pl needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
@echo "installing into .venv (some minutes, 6 to 7 GB, once)"
@$(PYTHON) -m venv .venv
@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.$(1)'
@touch $@
endef

.venv/.done: pyproject.toml constraints.txt
	$(call install,[dev])

.venv/.small: pyproject.toml constraints.txt
	$(call install)

setup: .venv/.done ## install everything into the virtual environment .venv

demo: $(if $(wildcard .venv/.done),.venv/.done,.venv/.small) ## train on the Datasaurus, about a minute, with panels, curves and a film of samples
	@$(BIN)/python -m diffusion_pl fit --config configs/datasaurus/vp.yaml

lint: .venv/.done ## style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: lint ## style, types and the ordinary tests, in two processes of one thread each
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

coverage: .venv/.done ## the ordinary tests, and the lines that they do not reach
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing

test-slow: .venv/.done ## the tests that take minutes
	@$(BIN)/python -m pytest -q -m slow

format: .venv/.done ## bring the code into style
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

notebooks: .venv/.done ## execute the notebooks, some minutes; copies with their pictures in build/notebooks
	@$(BIN)/python notebooks/run.py

docs: .venv/.done ## the documentation site, into build/docs; after `make notebooks` with their outputs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet -f docs/mkdocs.yml
	@echo "open build/docs/index.html"

pictures: .venv/.done ## make the images of README.md and docs again, eight minutes, into docs/assets
	@$(BIN)/python docs/pictures.py

benchmarks: .venv/.done ## measure speed and quality beside bare loops and peers, an hour; prints ratios
	@$(BIN)/python benchmarks/datasaurus.py
	@$(BIN)/python benchmarks/images.py
	@$(BIN)/python benchmarks/peers.py
	@$(BIN)/python benchmarks/sampling.py
	@$(BIN)/python benchmarks/checkpoint.py
	@$(BIN)/python benchmarks/scaling.py
	@$(BIN)/python benchmarks/evaluation.py

benchmarks-gpu: .venv/.done ## the same for a GPU, twenty minutes: utilisation, sampling, FID features, memory
	@$(BIN)/python benchmarks/gpu.py

zoo: .venv/.done ## train the shipped models of diffusion_pl/zoo again, half an hour
	@$(BIN)/python benchmarks/make_zoo.py

clean: ## remove the environment and caches; runs stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
