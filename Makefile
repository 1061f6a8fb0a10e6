# make demo | test | lint | bench. Each makes its own environment in .venv when there is none.
#   PYTHON    the interpreter .venv is made from
#   PIP_ARGS  more options for pip, for example the CPU builds of torch:
#             make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test lint bench install

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
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# One JSON line per script; CONTRIBUTING.md says how figures are compared. The peers have an environment of their own.
OWN := demo selection verify bench_sampling bench_planner bench_scaling
PEERS := bench_head bench_update bench_step

bench: install
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[bench]'
	@for name in $(OWN); do echo "# $$name"; $(BIN)/python benchmarks/$$name.py --quick || exit; done
	@for name in $(PEERS); do echo "# $$name"; .venv-peers/bin/python benchmarks/$$name.py --quick || exit; done
