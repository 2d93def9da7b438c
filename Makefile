# Every target sets up what it needs: a virtual environment in .venv with the versions of
# constraints.txt. PYTHON chooses the interpreter, 3.11 or newer.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help demo test test-slow check docs dist bench neural-tangents pfns curve-priors blackjax bde saas tuners clean

help:
	@echo "make demo       fit, query and search on real data; figures and report in out/"
	@echo "make test       the fast tests"
	@echo "make test-slow  the slow tests too"
	@echo "make check      formatter, linter, type checker, import contract"
	@echo "make docs       run the pages' code and build the site into docs/site"
	@echo "make dist       wheel and source distribution in dist/, checked"
	@echo "make bench      the benchmarks, quickly; without --quick by hand, see docs/pages/results.md"
	@echo "make neural-tangents  the competitor of 'benchmarks kernels', 2 GB in .venv-neural-tangents"
	@echo "make pfns       the competitor of 'benchmarks pfn throughput', 1 GB in .venv-pfns"
	@echo "make curve-priors  priors of learning curves for 'benchmarks pfn curves', 1 GB in .venv-curve-priors"
	@echo "make blackjax   the competitors of 'benchmarks networks', 1 GB in .venv-blackjax"
	@echo "make bde        the competitor of 'benchmarks networks --accuracy', 1 GB in .venv-bde"
	@echo "make tuners     competitors of 'benchmarks search lookups', 1 GB in .venv-tuners"
	@echo "make saas       the competitor of 'benchmarks networks --saas', 2 GB in .venv-saas"

# torch first and pinned: left to the other packages, pip may pull another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/python examples/quickstart.py

# Two to four processes of one thread each: most tests are many small calls. They and the processes
# that they start compile modules once, also where the environment says to keep nothing.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m 'slow or not slow'

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Pages whose code did not change since they were run are not run again.
docs: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	OMP_NUM_THREADS=1 $(BIN)/python docs/execution.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

dist: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dist]'
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks search digits --methods random gp --seeds 2 --trials 12 --out out/digits.jsonl
	$(BIN)/python -m benchmarks pfn --quick
	$(BIN)/python -m benchmarks kernels --quick

# The last release, with the newest jax that it imports under; TensorFlow is a hard dependency of
# its tf2jax. It cannot share an environment with ours.
neural-tangents: .venv-neural-tangents/.installed

.venv-neural-tangents/.installed:
	test -x .venv-neural-tangents/bin/python || $(PYTHON) -m venv .venv-neural-tangents
	.venv-neural-tangents/bin/pip install --quiet --disable-pip-version-check \
		neural-tangents==0.6.5 jax==0.5.3 jaxlib==0.5.3 numpy==1.26.4 scipy==1.13.1 \
		tf2jax==0.3.6 tensorflow==2.21.0
	touch $@

# Its requirements include a formatter and a test runner, which have no place among ours.
pfns: .venv-pfns/.installed

.venv-pfns/.installed: constraints.txt
	test -x .venv-pfns/bin/python || $(PYTHON) -m venv .venv-pfns
	.venv-pfns/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-pfns/bin/pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt pfns==0.4.2
	touch $@

# lcpfn asks for a torch that has no Python 3.11; its prior needs none of what that pin is for.
curve-priors: .venv-curve-priors/.installed

.venv-curve-priors/.installed: constraints.txt
	test -x .venv-curve-priors/bin/python || $(PYTHON) -m venv .venv-curve-priors
	.venv-curve-priors/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-curve-priors/bin/pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt ifbo==0.4.1
	.venv-curve-priors/bin/pip install --quiet --disable-pip-version-check --no-deps lcpfn==0.1.3
	touch $@

# Samplers in JAX, which is no dependency of ours.
blackjax: .venv-blackjax/.installed

.venv-blackjax/.installed:
	test -x .venv-blackjax/bin/python || $(PYTHON) -m venv .venv-blackjax
	.venv-blackjax/bin/pip install --quiet --disable-pip-version-check \
		blackjax==1.7.1 numpyro==0.22.0 jax==0.10.2
	touch $@

# It pins an old blackjax, so that it cannot share an environment with the newest.
bde: .venv-bde/.installed

.venv-bde/.installed:
	test -x .venv-bde/bin/python || $(PYTHON) -m venv .venv-bde
	.venv-bde/bin/pip install --quiet --disable-pip-version-check \
		sklearn-contrib-bde==1.0.2 jax==0.10.2 scikit-learn==1.9.1
	touch $@

# BoTorch's fully Bayesian models need a jax older than the other competitors'.
saas: .venv-saas/.installed

.venv-saas/.installed: constraints.txt
	test -x .venv-saas/bin/python || $(PYTHON) -m venv .venv-saas
	.venv-saas/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-saas/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		botorch==0.18.1 numpyro==0.22.0 jax==0.9.2 jaxlib==0.9.2
	touch $@

tuners: .venv-tuners/.installed

.venv-tuners/.installed:
	test -x .venv-tuners/bin/python || $(PYTHON) -m venv .venv-tuners
	.venv-tuners/bin/pip install --quiet --disable-pip-version-check \
		smac==2.4.1 syne-tune==0.16.0 huggingface_hub==2.4.0
	touch $@

clean:
	rm -rf .venv .venv-neural-tangents .venv-pfns .venv-curve-priors .venv-blackjax .venv-bde .venv-saas .venv-tuners out runs dist docs/site docs/executed .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
