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
DETECTION_ARGS ?=
PYTEST_ARGS ?=
BENCHMARK_ARGS ?=
WHEELS ?=

IN_VENV := $(VENV)/bin/python
CONSTRAINTS := requirements/constraints.txt
SOURCES := us3l_mm tools tests configs setup.py
PIP := $(IN_VENV) -m pip --no-input

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_USER := 0
ifneq ($(strip $(WHEELS)),)
export PIP_FIND_LINKS := $(PIP_FIND_LINKS) $(abspath $(WHEELS))
endif

.DEFAULT_GOAL := help
.PHONY: help demo demo-detection test test-slow lint format benchmark clean distclean
.DELETE_ON_ERROR:

help:
	@echo 'make demo       install, pre-train a small network on digits, and show'
	@echo '                accuracy against compute: about 10 minutes'
	@echo 'make demo-detection  the same weights in Mask R-CNN, two widths against'
	@echo '                random weights: 4 minutes, once mmcv is compiled'
	@echo 'make test       install what the tests need (compiles the ops of mmcv'
	@echo '                once: 10 minutes on 2 cores) and run them'
	@echo 'make test-slow  the tests that take minutes each'
	@echo 'make lint       check style, format and types of the code'
	@echo 'make format     repair style and format'
	@echo 'make benchmark  time a training step and its parts'
	@echo 'make clean      remove build files and caches'
	@echo 'make distclean  remove .venv and the compiled wheels as well'
	@echo
	@echo 'Variables:'
	@echo '  PYTHON=python3.11   Python 3.10, 3.11 or 3.12 for the environment'
	@echo '  VENV=.venv          the folder of the environment'
	@echo '  DEMO=vit            a vision transformer for make demo, slimclr for'
	@echo '                      SlimCLR, or the name of another config'
	@echo '  PYTEST_ARGS="-k x"  passed on to pytest; likewise DEMO_ARGS to the'
	@echo '                      training of the demo, and BENCHMARK_ARGS'
	@echo '  WHEELS=FOLDER       ready-made wheels, such as a compiled onedl-mmcv'
	@echo '  MAX_JOBS=1          compilers at a time (default: one a core)'
	@echo '  FORCE_CUDA=1        compile the CUDA ops of mmcv as well'
	@echo "pip's own variables work too. Without a GPU, PIP_EXTRA_INDEX_URL set"
	@echo "to PyTorch's index of CPU wheels saves 4 GB."

# --- the environment: each step leaves a file, so it is done once -----------

$(IN_VENV):
	@command -v $(PYTHON) >/dev/null || { echo '$(PYTHON) was not found. Name' \
	  'a Python 3.10, 3.11 or 3.12: make demo PYTHON=python3.11'; exit 1; }
	@$(PYTHON) tools/setup/check_python.py
	@echo '== Making an environment in $(VENV)'
	$(PYTHON) -m venv $(VENV)

# A desktop's OpenCV, which mmcv asks for, needs libGL. Where that is missing
# the headless build of the same version is laid over it.
$(VENV)/.installed: setup.py $(CONSTRAINTS) | $(IN_VENV)
	@echo '== Installing us3l_mm into $(VENV): 2 to 5 minutes, 6 GB of disk'
	$(PIP) install -c $(CONSTRAINTS) -e '.[mminstall]'
	@$(IN_VENV) -c 'import cv2' 2>/dev/null || { \
	  echo '== OpenCV lacks libGL here, taking its headless build'; \
	  $(PIP) install -c $(CONSTRAINTS) --no-deps --force-reinstall \
	    opencv-python-headless; }
	$(IN_VENV) -W ignore -c 'import us3l_mm, mmpretrain, torchvision'
	@touch $@

$(VENV)/.installed-detection: $(VENV)/.installed tools/setup/mmcv_ops.py
	@echo '== Installing MMDetection'
	$(IN_VENV) tools/setup/mmcv_ops.py
	$(PIP) install -c $(CONSTRAINTS) -e '.[mminstall,detection]'
	$(IN_VENV) -c 'import cv2, mmcv.ops, mmdet'
	@touch $@

$(VENV)/.installed-tests: $(VENV)/.installed-detection
	@echo '== Installing what the tests need'
	$(PIP) install -c $(CONSTRAINTS) -e '.[mminstall,tests]'
	$(IN_VENV) -c 'import cv2, mmcv.ops, mmdet'
	@touch $@

$(VENV)/.installed-lint: $(CONSTRAINTS) | $(IN_VENV)
	$(PIP) install -c $(CONSTRAINTS) ruff yapf mypy
	@touch $@

# --- the verbs ---------------------------------------------------------------

# mmcv warns about ops that pre-training does not use.
demo: export PYTHONWARNINGS := ignore:Fail to import
demo: $(VENV)/.installed
	@test -f '$(DEMO_CONFIG)' || { echo 'There is no config "$(DEMO)". DEMO' \
	  'is the name of a file in configs/*/ without .py, or a path.'; exit 1; }
	@echo '== Pre-training $(DEMO_CONFIG)'
	$(IN_VENV) tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO_DIR) \
	  $(DEMO_ARGS)
	@echo '== Measuring every width of the one checkpoint'
	$(IN_VENV) tools/evaluate_widths.py $(DEMO_CONFIG) \
	  "$$(cat $(DEMO_DIR)/last_checkpoint)" --knn --baselines \
	  --out $(DEMO_DIR)/report

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
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find us3l_mm tools configs tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .wheels
