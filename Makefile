# `make help` lists what a person types. One virtual environment, .venv, serves both running and developing; files in
# it remember what was installed, so that a second `make` does nothing.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet install --require-hashes
PROTOS := $(wildcard tiflow/rpc/*.proto tiflow/raft/*.proto)
N ?= 2000

##@ Run

.PHONY: engine
engine: bin/tiflow  ## Everything that running tiflow needs; leaves bin/tiflow

.PHONY: demo
demo: engine  ## Submit a job to a cluster on this machine and show what happens when its leader is killed
	$(PY) examples/demo.py

.PHONY: dev
dev: engine  ## 3 masters and 2 executors on this machine, until Ctrl-C
	bin/tiflow dev

##@ Develop

.PHONY: dev-setup
dev-setup: .venv/.dev bin/tiflow  ## Everything that developing needs, in .venv

.PHONY: check
check: dev-setup  ## Lint, formatting, types, import directions
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

.PHONY: fmt
fmt: dev-setup  ## Format, and fix what the linter can fix
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

.PHONY: test
test: dev-setup  ## The fast tests: unit and golden
	$(PY) -m pytest tests/unit tests/golden

.PHONY: engine_unit_test
engine_unit_test:  ## All checks and tests, from nothing (what CI runs); PYTEST_ARGS="-k word" for some of them
	scripts/test-setup.sh
	$(MAKE) --no-print-directory check
	scripts/deploy-tools.sh
	$(TEST_ENV) $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --durations=10 $(PYTEST_ARGS)
# tests of clusters mostly wait: side by side they take half the time, and each may take a little longer
TEST_ENV := TIFLOW_TEST_SLOWDOWN=$${TIFLOW_TEST_SLOWDOWN:-2}

.PHONY: sim
sim: dev-setup  ## N fresh random schedules of consensus with faults (N=2000); a failing seed says how to replay it
	$(PY) -m tests.sim.raft $(N) $(SIM_ARGS)

.PHONY: chaos
chaos: dev-setup  ## Two minutes of faults of processes, network and disks, judged at the end (root, iproute2, mkfs.ext4, iptables)
	$(PY) -m tests.chaos $(CHAOS_ARGS)

.PHONY: chaos-metadata
chaos-metadata: dev-setup  ## Clusters under load, and fake jobs, whose MariaDB is killed, or stopped, for a minute
	TIFLOW_OUTAGE_S=60 $(PY) -m pytest tests/cluster/test_outage.py tests/cluster/test_framework.py -k "database" -s

.PHONY: mysql_test
mysql_test: dev-setup  ## The tests of the metadata database on a genuine MySQL 9 (root on Debian: it is fetched)
	scripts/mysql-server.sh
	CI=true TIFLOW_TEST_MYSQL=$(CURDIR)/.tools/mysql $(PY) -m pytest tests/meta tests/cluster/test_outage.py \
	    tests/cluster/test_disaster.py tests/cluster/test_retention.py tests/cluster/test_checkpoints.py $(PYTEST_ARGS)

##@ Deploy

.PHONY: engine_image
engine_image:  ## The docker image dataflow:test
	deployments/engine/run-engine.sh build

.PHONY: wheel
wheel: dev-setup  ## dist/tiflow-*.whl
	$(PY) -m pip --disable-pip-version-check --quiet wheel --no-deps --no-build-isolation -w dist .

.PHONY: deploy_test
deploy_test: dev-setup  ## The image and the docker-compose clusters, for real: built, started, hurt, upgraded (minutes)
	scripts/deploy-tools.sh
	$(PY) -m tests.deploy.live

##@ Measure

.PHONY: bench
bench: engine  ## The whole: tasks per second, latency, failover of a cluster of real processes
	$(PY) -m tests.bench.bench_cluster

.PHONY: bench-exec
bench-exec: engine  ## Executors: killed, hung, frozen and cut off, 20 times each; memory over 100,000 tasks (root, iproute2)
	$(PY) -m tests.bench.bench_exec

.PHONY: bench-framework
bench-framework: engine  ## Job masters: how soon a new one is in charge, and all counts are exact, after each fault
	$(PY) -m tests.bench.bench_framework $(BENCH_ARGS)

.PHONY: bench-pool
bench-pool: engine  ## Pools: calls per second and latency, beside other executors of concurrent.futures
	$(PY) -m tests.bench.pool

.PHONY: bench-sched
bench-sched: engine  ## The core: commands applied and tasks planned per second
	$(PY) -m tests.bench.bench_sched

.PHONY: bench-raft
bench-raft: engine  ## Consensus beside etcd: commits, failover, snapshots at size (BENCH_ARGS)
	$(PY) -m tests.bench.raft $(BENCH_ARGS)

.PHONY: bench-cvs
bench-cvs: engine  ## cvs beside rsync: many small files, one large one
	$(PY) -m tests.bench.bench_cvs

.PHONY: bench-meta
bench-meta: dev-setup  ## Checkpoints: small puts per second through the leader into a private MariaDB
	$(PY) -m tests.bench.bench_meta

##@ Maintain

.PHONY: proto
proto: dev-setup  ## Generate the gRPC code from the .proto files
	$(PY) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

.PHONY: lock
lock: dev-setup  ## Pin all dependencies, with hashes
	.venv/bin/uv pip compile $(LOCK_ARGS) pyproject.toml -o requirements.lock
	.venv/bin/uv pip compile $(LOCK_ARGS) --extra dev pyproject.toml -o requirements-dev.lock
	grep -o 'hatchling==[0-9.]*' pyproject.toml | head -n 1 | \
	    .venv/bin/uv pip compile $(LOCK_ARGS) - -o deployments/engine/docker/requirements-build.lock
LOCK_ARGS := --quiet --generate-hashes --no-header --no-annotate --no-emit-index-url --python-version 3.11

.PHONY: clean
clean:  ## Remove everything that was made here, .venv included
	rm -rf .venv bin dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find tiflow tests -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help
help:  ## This text
	@awk -F ':.*## ' '/^##@/ {print "\n" substr($$0, 5)} /^[a-z_-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' Makefile

# ---- files

.venv/.created: scripts/venv.sh
	PYTHON="$(PYTHON)" scripts/venv.sh
	touch $@

.venv/.engine: requirements.lock | .venv/.created
	$(PIP) -r requirements.lock
	touch $@

.venv/.dev: requirements-dev.lock | .venv/.created
	$(PIP) -r requirements-dev.lock
	touch $@ .venv/.engine

bin/tiflow: scripts/install.sh .venv/.engine
	scripts/install.sh
