# Short on purpose: whatever needs more than a line or two is Python (tests/machine.py, tests/__main__.py, benchmarks/).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup venv install uninstall demo test test-unit test-kernels lint lock generated bpf deb bench fuzz clean

PYTHON ?= /usr/bin/python3
KEEP ?=
CLEAN ?=
DESTDIR ?=
COVERAGE ?= enforce
SECONDS_EACH ?= 60
MACHINE = $(PYTHON) tests/machine.py
PIP = .venv/bin/python -m pip --quiet --disable-pip-version-check
UV_LOCK = .cache/uv/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --quiet \
	--no-emit-index-url --custom-compile-command "make lock"

help: ## Explain every target
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:
	@test -x "$$(command -v $(PYTHON))" || { test $$(id -u) = 0 || { echo "no $(PYTHON): run this as root once, or install Python 3.11 or newer" >&2; exit 77; }; \
	  apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends python3; }
	@$(MACHINE) base

venv: setup .venv/.ready ## Make .venv with the locked dependencies; then .venv/bin/dnsguard runs. PYTHON=... chooses the interpreter

.venv/.ready: requirements.lock pyproject.toml | setup
	$(PYTHON) -m venv --clear .venv
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-index --no-build-isolation --editable .
	@touch $@

install: setup ## Install dnsguard on this node (root): /opt/dnsguard, units, defaults. DESTDIR=... below a folder
	$(PYTHON) -B systemd/install.py install --python $(PYTHON) $(if $(DESTDIR),--root $(DESTDIR))

uninstall: ## Take it off again; what the kernel enforces stays. CLEAN=1 takes that out first
	$(PYTHON) -B systemd/install.py uninstall $(if $(DESTDIR),--root $(DESTDIR)) $(if $(CLEAN),--clean)

demo: venv ## Two pods, an outside world and dnsguard in namespaces, step by step (root). KEEP=1 leaves it running
	.venv/bin/dnsguard demo $(if $(KEEP),--keep)

test: setup ## Every test, with coverage (root). COVERAGE=enforce fails below the thresholds
	@$(MACHINE) test
	@$(MAKE) --no-print-directory venv
	.venv/bin/python -m tests --coverage $(COVERAGE)

test-unit: venv ## The tests that need neither root nor a kernel feature
	.venv/bin/python -m pytest tests/unit tests/contract tests/replay -m "not node" -q

test-kernels: setup ## The suites that stand on the kernel, on Debian's 5.10, 6.1 and 6.12 too (root). ARGS="--kernel 6.1"
	@$(MACHINE) kernels
	@$(MAKE) --no-print-directory venv
	.venv/bin/python -m tests.kernels $(ARGS)

lint: venv ## ruff, mypy --strict, import layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy --strict
	.venv/bin/mypy --strict -p benchmarks -p tests.host -m tests.machine -m tests.__main__
	.venv/bin/mypy --strict systemd/install.py systemd/environment.py
	.venv/bin/lint-imports

lock: venv ## Resolve the dependencies anew into the lock files, with hashes
	$(PYTHON) -m venv .cache/uv && .cache/uv/bin/pip --quiet install uv
	$(UV_LOCK) pyproject.toml --upgrade --extra dev -o requirements.lock
	$(UV_LOCK) pyproject.toml -c requirements.lock -o requirements-run.lock
	echo hatchling | $(UV_LOCK) - -c requirements.lock -o requirements-build.lock
	$(UV_LOCK) pyproject.toml --upgrade --extra bench -c requirements.lock -o requirements-bench.lock

generated: venv ## Write anew what is made from the code: reference pages, schemas, man pages, completions, catalog, dashboard
	for room in config cli observe; do .venv/bin/python -m dnsguard.$$room.reference .; done
	.venv/bin/python packaging/grafana/dashboard.py

bpf: ## Compile the eBPF program into the package (clang, llvm, libbpf-dev). The object is committed: nobody else needs this
	$(PYTHON) bpf/build.py

deb: setup ## Build the Debian package for this machine's Debian into dist/, and have lintian look at it
	@$(MACHINE) deb
	package=$$(/usr/bin/python3 packaging/build.py) && lintian --allow-root --fail-on error,warning "$$package" && echo "$$package"

bench: setup ## dnsguard beside its peers: tables, docs/benchmarks.md, plots (root). ARGS=--quick for a minute's run
	@$(MACHINE) bench
	@$(MAKE) --no-print-directory venv
	$(PIP) install --require-hashes -r requirements-bench.lock
	.venv/bin/python -m tests.coredns
	.venv/bin/python -m benchmarks $(ARGS)

fuzz: venv ## Feed every reader of outside bytes with damaged input. SECONDS_EACH=60 for each reader
	.venv/bin/python -m tests.hostile --seconds $(SECONDS_EACH)

clean: ## Remove what the other targets made here (not the apt packages)
	rm -rf .venv .cache dist htmlcov .coverage* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
