# Two commands do everything, set-up included: make demo, make test. A second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEBIAN_PACKAGES := iproute2 nftables iptables ethtool util-linux python3-venv

.PHONY: setup system demo test test-unit test-layers lint bench clean

setup: system $(STAMP)

system:
	@PYTHON='$(PYTHON)' ./scripts/need-programs $(DEBIAN_PACKAGES)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, got $$($(PYTHON) --version); set PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/testbed run scenarios/quickstart.yaml

test: setup
	@status=0; \
	$(MAKE) --no-print-directory test-unit || status=$$?; \
	$(MAKE) --no-print-directory test-layers || status=$$?; \
	exit $$status

# Unit tests share the cores; the other layers measure time or count what is on the machine, and go one at a time.
test-unit: setup
	$(BIN)/pytest tests/unit --numprocesses auto --dist worksteal

test-layers: setup
	$(BIN)/pytest tests --ignore=tests/unit

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

bench: setup
	out=results/reference-$$(date -u +%Y%m%dT%H%M%SZ) && \
	$(BIN)/testbed sweep scenarios/sweeps/reference.yaml --repeat 5 --out $$out && \
	$(BIN)/python tests/bench/time_shares.py $$out

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
