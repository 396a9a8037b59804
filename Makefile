# Each target sets up what it needs by itself, once: `make test` on a fresh machine installs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
OUT ?= runs
REPORT ?= report
# Where runs go, with what a run asks for there: ON='slurm --partition long --time 2:00:00'.
ON ?= local
# A folder of packages that 'make wheels' has filled: nothing else is looked at.
WHEELS ?=

STUDIES := reports/results/studies

.PHONY: help wheels bench bench-mnist report study gallery docs speed readme verify test test-slow cluster test-lowest test-newest \
  mutants chaos lint clean

help:
	@echo "make bench        digits: nearly every strategy, 3 seeds, no network needed; ends with the tables"
	@echo "make bench-mnist  MNIST: 5 to 10 seeds (ENGRAMS_DATA names the folder that has MNIST, else it is downloaded)"
	@echo "make bench ON=slurm  the same in a queue (ON=ray: on a cluster; ON='slurm --partition long' with options)"
	@echo "make wheels       all that the installation needs, into a folder; 'make ... WHEELS=wheels' installs from it alone"
	@echo "make report       one page of every run in $(OUT), which opens from disk: tables, charts, matrices"
	@echo "make study        which Fisher, which MAS: MNIST, 5 seeds; and MAS's adaptive experiment; ends with the figures"
	@echo "make gallery      the pictures that explain the methods"
	@echo "make docs         one site of all documents and a reference of the names, which opens from disk: site/index.html"
	@echo "make speed        what loading, penalties, importances, logging, generative replay and a GAN cost, as ratios"
	@echo "make readme       the README's table and picture, all pages of results, the tables of the methods' pages, from the records in reports"
	@echo "make verify       ten of the committed records, drawn at random, done again and compared"
	@echo "make test         the quick tests, in ten minutes"
	@echo "make test-slow    all others: W&B, checkpoints, generators, queues, kills, searches, broken files, the site, the installation"
	@echo "make cluster      twenty runs in a SLURM queue and twenty on a Ray cluster, both on this machine, and meddled with"
	@echo "make test-lowest  the tests with the oldest of everything that is allowed, on Python 3.10"
	@echo "make test-newest  the tests with the newest of everything, on Python 3.13"
	@echo "make chaos        kills a suite 50 times at random moments, and reads 2,000 broken files; 15 minutes"
	@echo "make mutants      changes strategies/ line by line, and says which changes no test notices; hours"
	@echo "make lint         ruff and mypy"

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' \
	  $(if $(WHEELS),--no-index --find-links $(WHEELS))
	touch $@

# For the Python and the kind of machine that this is; what comes as source is built here.
wheels:
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check -c constraints.txt --wheel-dir $(or $(WHEELS),wheels) '.[dev]'
	rm $(or $(WHEELS),wheels)/engrams-*.whl

# The report shows the runs that failed, too: it is made whether or not some did.
bench: SUITE := digits
bench-mnist: SUITE := mnist
bench bench-mnist: $(READY)
	$(BIN)/python -m benchmarks suite $(SUITE) --out $(OUT) --on $(ON); status=$$?; \
	$(BIN)/python -m benchmarks report $(OUT) --out $(REPORT); exit $$status

report: $(READY)
	$(BIN)/python -m benchmarks report $(OUT) --out $(REPORT)

study: $(READY)
	for name in adaptive adaptive-task fisher mas; do \
	  $(BIN)/python -m benchmarks study $$name --out $(OUT)-studies || exit 1; \
	done

gallery: $(READY)
	$(BIN)/python -m benchmarks.gallery reports/results/gallery reports/results/records

docs: $(READY)
	rm -rf site  # else pages that are gone would stay
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c reports/site . site
	@echo "site: site/index.html"

speed: $(READY)
	$(BIN)/python -m benchmarks speed

readme: $(READY)
	$(BIN)/python -m benchmarks pages reports/results/records --studies $(STUDIES) --out reports/results/pages --readme README.md \
	  --methods strategies/methods

verify: $(READY)
	$(BIN)/python -m benchmarks verify reports/results/records --rerun 10

test: WHICH := not slow
test-slow: WHICH := slow
test test-slow: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m "$(WHICH)"

cluster: $(READY)
	ENGRAMS_CLUSTER_RUNS=20 $(BIN)/python -m pytest tests/test_places.py

# The oldest, and the newest, of everything that pyproject.toml allows, on the oldest and the newest Python.
test-lowest: BOUNDS := 3.10 lowest-direct
test-newest: BOUNDS := 3.13 highest
test-lowest test-newest: ELSEWHERE = $(VENV)-$(word 1,$(BOUNDS))
test-lowest test-newest: $(READY)
	$(BIN)/uv venv --quiet --clear --seed --python $(word 1,$(BOUNDS)) $(ELSEWHERE)
	$(BIN)/uv pip compile --quiet --python $(ELSEWHERE) --resolution $(word 2,$(BOUNDS)) --extra dev pyproject.toml -o $(ELSEWHERE)/requirements.txt
	$(BIN)/uv pip install --quiet --python $(ELSEWHERE) -r $(ELSEWHERE)/requirements.txt
	$(BIN)/uv pip install --quiet --python $(ELSEWHERE) --no-deps -e .
	$(ELSEWHERE)/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

chaos: $(READY)
	$(BIN)/python -m tests.chaos

mutants: $(READY)
	$(BIN)/python -m tests.mutants

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	mkdir -p .links/engrams  # mypy knows no mapped packages: it finds these folders by their links
	for room in benchmarks strategies reports; do ln -sfn ../../$$room .links/engrams/$$room; done
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) $(VENV)-* .links build site *.egg-info
