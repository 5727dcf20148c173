# `make` alone lists the verbs. Everything happens in an environment that the
# first verb makes in $(VENV); nothing is installed anywhere else.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= resnet18
DEMO_CONFIG ?= $(firstword $(wildcard $(DEMO) configs/*/$(DEMO).py \
  configs/*/us3l_$(DEMO)_demo_digits.py \
  configs/*/$(DEMO)_resnet18_demo_digits.py))
# A folder for each, so that no demo resumes or reports another one's.
DEMO_DIR ?= work_dirs/demo$(if $(filter-out resnet18,$(DEMO)),-$(basename \
  $(notdir $(DEMO))))
DEMO_ARGS ?=
# The report of gated networks has two more budgets.
REPORT_ARGS ?= $(if $(findstring gated,$(DEMO)),--budgets 0.7 0.45)
DETECTION_ARGS ?=
PYTEST_ARGS ?=
BENCHMARK_ARGS ?=

IN_VENV := $(VENV)/bin/python
CONSTRAINTS := requirements/constraints.txt
SOURCES := us3l_mm tools tests configs setup.py
PIP := $(IN_VENV) -m pip --no-input
comma := ,

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_USER := 0

.DEFAULT_GOAL := help
.PHONY: help demo demo-detection test test-slow lint format docs benchmark clean distclean
.DELETE_ON_ERROR:

help:
	@echo 'make demo       install, pre-train a small network on digits, and show'
	@echo '                accuracy against compute: about 5 minutes'
	@echo 'make demo-detection  the same weights in Mask R-CNN, two widths against'
	@echo '                random weights: 4 minutes'
	@echo 'make test       install what the tests need and run them'
	@echo 'make test-slow  the tests that take minutes each'
	@echo 'make lint       check style, format and types of the code'
	@echo 'make format     repair style and format'
	@echo 'make docs       build the pages of docs/ into docs/_build'
	@echo 'make benchmark  time a training step and its parts'
	@echo 'make clean      remove build files and caches'
	@echo 'make distclean  remove .venv as well'
	@echo
	@echo 'Variables:'
	@echo '  PYTHON=python3.11   Python 3.10, 3.11 or 3.12 for the environment'
	@echo '  VENV=.venv          the folder of the environment'
	@echo '  DEMO=vit            a vision transformer for make demo, slimclr for'
	@echo '                      SlimCLR, gated for dense + gated SSL, or the name'
	@echo '                      of another config'
	@echo '  PYTEST_ARGS="-k x"  passed on to pytest; likewise DEMO_ARGS to the'
	@echo '                      training of the demo, and BENCHMARK_ARGS'
	@echo "pip's own variables work too. Without a GPU, PIP_EXTRA_INDEX_URL set"
	@echo "to PyTorch's index of CPU wheels saves 4 GB."

# --- the environment: each step leaves a file, so it is done once -----------

$(IN_VENV):
	@command -v $(PYTHON) >/dev/null || { echo '$(PYTHON) was not found. Name' \
	  'a Python 3.10, 3.11 or 3.12: make demo PYTHON=python3.11'; exit 1; }
	@$(PYTHON) tools/setup/check_python.py
	@echo '== Making an environment in $(VENV)'
	$(PYTHON) -m venv $(VENV)

# install(extras, modules that must be there, stamps of what it includes).
# mmcv comes first, without pip's cache: a plain build in isolation compiles
# nothing, but the cache may hold one with ops, compiled for another PyTorch.
# A desktop's OpenCV, which mmcv asks for, needs libGL. Where that is missing
# the headless build of the same version is laid over it.
define install
	$(PIP) install -c $(CONSTRAINTS) --no-cache-dir --no-deps onedl-mmcv
	$(PIP) install -c $(CONSTRAINTS) -e '.[mm$(1)]'
	@$(IN_VENV) -c 'import cv2' 2>/dev/null || { \
	  echo '== OpenCV lacks libGL here, taking its headless build'; \
	  $(PIP) install -c $(CONSTRAINTS) --no-deps --force-reinstall \
	    opencv-python-headless; }
	$(IN_VENV) -c 'import us3l_mm, cv2, mmpretrain, torchvision$(2)'
	@touch $(addprefix $(VENV)/,$(3))
endef

$(VENV)/.installed: setup.py $(CONSTRAINTS) | $(IN_VENV)
	@echo '== Installing us3l_mm into $(VENV): 2 to 5 minutes, 6 GB of disk'
	$(call install,,,.installed)

$(VENV)/.installed-detection: setup.py $(CONSTRAINTS) | $(IN_VENV)
	@echo '== Installing us3l_mm and MMDetection into $(VENV)'
	$(call install,$(comma)detection,$(comma) mmdet,.installed \
	  .installed-detection)

$(VENV)/.installed-tests: setup.py $(CONSTRAINTS) | $(IN_VENV)
	@echo '== Installing us3l_mm and what the tests need into $(VENV)'
	$(call install,$(comma)tests,$(comma) mmdet,.installed \
	  .installed-detection .installed-docs .installed-tests)

$(VENV)/.installed-docs: setup.py $(CONSTRAINTS) | $(IN_VENV)
	@echo '== Installing us3l_mm and what its pages need into $(VENV)'
	$(call install,$(comma)docs,$(comma) sphinx,.installed .installed-docs)

$(VENV)/.installed-lint: $(CONSTRAINTS) | $(IN_VENV)
	$(PIP) install -c $(CONSTRAINTS) ruff yapf mypy
	@touch $@

# --- the verbs ---------------------------------------------------------------

demo: $(VENV)/.installed
	@test -f '$(DEMO_CONFIG)' || { echo 'There is no config "$(DEMO)". DEMO' \
	  'is the name of a file in configs/*/ without .py, or a path.'; exit 1; }
	@echo '== Pre-training $(DEMO_CONFIG)'
	$(IN_VENV) tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO_DIR) \
	  $(DEMO_ARGS)
	@echo '== Measuring every sub-network of the one checkpoint'
	$(IN_VENV) tools/evaluate_widths.py $(DEMO_CONFIG) \
	  "$$(cat $(DEMO_DIR)/last_checkpoint)" --knn --baselines \
	  $(REPORT_ARGS) --out $(DEMO_DIR)/report

# Pre-trains first where `make demo` has not.
demo-detection: $(VENV)/.installed-detection
	$(IN_VENV) -W ignore tools/demo_detection.py $(DETECTION_ARGS)

# One worker more than there are cores, as some tests wait for processes.
test: $(VENV)/.installed-tests
	$(IN_VENV) -m pytest --dist loadfile --no-loadscope-reorder \
	  -n "$$($(IN_VENV) -c \
	  'import os; print((os.cpu_count() or 1) + 1)')" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-tests
	$(IN_VENV) -m pytest -m slow $(PYTEST_ARGS)

docs: $(VENV)/.installed-docs
	$(IN_VENV) -m sphinx -q -W --keep-going docs docs/_build
	@echo '== The pages begin with docs/_build/index.html'

benchmark: $(VENV)/.installed
	$(IN_VENV) tools/benchmarks/train_step.py $(BENCHMARK_ARGS)

lint: $(VENV)/.installed-lint
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m yapf --diff --recursive $(SOURCES)
	$(IN_VENV) -m mypy us3l_mm

format: $(VENV)/.installed-lint
	$(IN_VENV) -m ruff check --fix .
	$(IN_VENV) -m yapf --in-place --recursive $(SOURCES)

clean:
	rm -rf build dist docs/_build *.egg-info .pytest_cache .ruff_cache
	find us3l_mm tools configs tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv
