# make quickstart   install, attack 30 trained networks, print the table and the report's path
# make test         install, lint, types, the whole test suite
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.installed-docs

.PHONY: quickstart test test-slow test-faults test-oldest lint zoo bench bench-training bench-convolutions reference examples docs results schema readme-pictures clean

quickstart: $(INSTALLED)
	$(BIN)/robust-ham run quickstart

# Two files at a time; waiting threads sleep instead of spinning.
test: $(INSTALLED) lint
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# Kills, full disks, damaged files, dying nodes, a thousand jobs: the long versions (about 20 minutes).
test-faults: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow or not slow" tests/project/test_faults.py tests/project/test_faulty_calls.py tests/project/test_soak.py tests/storage/test_locks.py tests/runs/test_ray_runner.py tests/runs/test_verify.py

# The suite with every dependency at its lower bound (downloads about 3 GB, most of it for torch).
OLDEST := .venv-oldest
test-oldest:
	$(PYTHON) -m venv --clear $(OLDEST)
	$(PYTHON) tools/oldest_versions.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OLDEST)/constraints.txt -e '.[dev,examples,bench]'
	OMP_WAIT_POLICY=PASSIVE $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile
	rm -rf $(OLDEST)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Trains the networks of the quickstart and copies them into the package (about 1 hour).
zoo: $(INSTALLED)
	$(BIN)/robust-ham run zoo_fashion_mnist --stop-after train
	rm -rf robust_ham/models/zoo/fashion_mnist
	mkdir -p robust_ham/models/zoo/fashion_mnist
	cp -r results/zoo_fashion_mnist/models/* robust_ham/models/zoo/fashion_mnist/

# Compares images per second: robust-ham's training loop, a plain DataLoader + float32 loop.
bench-training: $(INSTALLED)
	$(BIN)/python tools/bench_training.py

bench-convolutions: $(INSTALLED)
	$(BIN)/python tools/bench_convolutions.py

# Compares the attacks with other libraries on trained networks (about 1 hour; DATA: a folder with cifar10).
bench: $(INSTALLED)
	$(BIN)/robust-ham bench bench_fashion_mnist --scaling
	$(BIN)/robust-ham bench bench_cifar10 --scaling $(if $(DATA),--data-root $(DATA))

# The reference works at laptop scale (about 2 hours; DATA: a folder with mnist, cifar10, cifar100).
REFERENCE := mnist_cnn mnist14_cnn fashion_mnist_cnn cifar10_cnn cifar100_cnn cifar10_controls cifar10_resnet18
EXPLAIN := tapering truncated-gabor fft-prediction kernels cost leakage convergence
reference: $(INSTALLED)
	for name in $(EXPLAIN); do \
	  rm -rf results/reference/$$name; \
	  $(BIN)/robust-ham explain $$name --out results/reference/$$name || exit $$?; done
	for name in $(REFERENCE); do \
	  $(BIN)/robust-ham run $${name}_laptop --out results/reference/$${name}_laptop $(if $(DATA),--data-root $(DATA)) || [ $$? -eq 4 ] || exit 1; done

# Runs the notebooks of examples/ again and stores their output (about 1 minute).
examples: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[examples]'
	$(BIN)/python tools/notebooks.py

# Builds the documentation site, docs/_build/html/index.html; warnings are errors.
docs: $(DOCS_INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html

# Updates the verdicts of the studies in results/README.md.
results: $(INSTALLED)
	$(BIN)/python tools/results_tables.py

schema: $(INSTALLED)
	$(BIN)/robust-ham list schema > configs/schema.json

readme-pictures: quickstart
	mkdir -p results/figures
	cp results/quickstart/figures/robustness.png results/figures/quickstart.png
	$(BIN)/python tools/screenshots.py results/quickstart/report.html results/figures/page.png

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(DOCS_INSTALLED): pyproject.toml $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

clean:
	rm -rf docs/_build docs/compare_windows.ipynb .venv $(OLDEST) dist .mypy_cache .ruff_cache .pytest_cache
