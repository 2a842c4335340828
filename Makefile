# What a person types. `make` alone lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV ?= .venv
BIN := $(VENV)/bin
# The tests and checks see this checkout, installed or not.
export PYTHONPATH := $(CURDIR)/shared:$(CURDIR)
export PYTHONUNBUFFERED := 1

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# ---- install ---------------------------------------------------------------------------------------------------------

# EXTRAS=services,local,dev leaves torch out: everything but training and the demo.
.PHONY: setup
setup: ## install everything into .venv (torch alone is a 3 GB download)
	@deploy/local/setup.sh $(VENV) $(EXTRAS)

.PHONY: lock
lock: setup ## pin the newest versions that fit pyproject.toml, in constraints.txt
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" --output-file constraints.txt

# ---- the stack on this machine ---------------------------------------------------------------------------------------

.PHONY: up
up: setup ## start Kafka, Postgres, S3 and the services, and wait until all are ready
	@$(BIN)/flywheel up

.PHONY: down
down: setup ## stop them; data stays
	@$(BIN)/flywheel down

.PHONY: status
status: setup ## each part, its address and its health
	@$(BIN)/flywheel status

.PHONY: clean
clean: ## remove the data of the local stack (var/)
	@if [ -x $(BIN)/flywheel ]; then $(BIN)/flywheel clean; else rm -rf var; fi

.PHONY: demo
demo: setup ## watch agents get better: the closed loop, a minute or two
	@$(BIN)/python -m examples.market.demo

# ---- in containers ---------------------------------------------------------------------------------------------------

# IMAGES=services builds one of them; ENGINE, REGISTRY, TAG and BASE are told of in deploy/images/build.sh.
IMAGES ?= services trainer
.PHONY: images
images: ## build the container images, with docker, podman or buildah
	@deploy/images/build.sh $(IMAGES)

.PHONY: secrets
secrets: ## make what is missing of the secrets in .env that compose.yaml asks for
	@deploy/compose/secrets.sh

# ---- the workshop ----------------------------------------------------------------------------------------------------

.PHONY: check
check: setup ## lint, format, types, import rules, generated pages and manifests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python -m flywheel.tools.docs --check
	$(BIN)/python -m deploy.k8s.generate --check

# TESTS="tests/unit -k window" runs some of them.
TESTS ?= tests
.PHONY: test
test: setup ## every test, on the real stack
	$(BIN)/python -m pytest $(TESTS)

# CHAOS="--seed 7 --events 500000 --kills 100" makes another storm; --help lists all.
.PHONY: chaos
chaos: setup ## a storm over the recorder: kills, restarts, cuts; then what was sent against what was stored
	$(BIN)/python -m tests.chaos.recorder $(CHAOS)

.PHONY: chaos-short
chaos-short: ## the same in a few minutes
	@$(MAKE) --no-print-directory chaos CHAOS="--short $(CHAOS)"

# BENCH="--only one limit --events 500000" measures some of it; --help lists all.
.PHONY: bench
bench: setup ## how fast: the recorder against COPY's limit and a plain Faust pipeline (minutes; wants a quiet machine)
	$(BIN)/python -m bench.recorder $(BENCH)

# OUTAGE="--minutes 1 --rate 500" makes another one.
OUTAGE ?= --minutes 10
.PHONY: outage
outage: setup ## take Postgres and Kafka away from the recorder for minutes, and see that it waits and recovers
	$(BIN)/python -m tests.chaos.outage $(OUTAGE)

# kustomize and the custom resources' definitions are made once (go, mvn); promtool is Debian's package prometheus.
.PHONY: manifests
manifests: setup ## build every Kubernetes overlay, hold it against schemas, rules and the code, and test the alerts
	$(BIN)/python -m pytest tests/manifests

# Needs root, and Debian's buildah, podman, runc and debootstrap; minutes the first time.
.PHONY: images-test
images-test: setup ## build the images without a daemon, and turn the loop with every part of it in its container
	$(BIN)/python -m pytest tests/images

# etcd, Kubernetes and kwok are built once with Go (ten minutes of one processor). CLUSTER=--keep leaves the cluster up to look at.
.PHONY: cluster-test
cluster-test: setup ## apply every Kubernetes overlay to a real API server, and see what becomes of it
	$(BIN)/python -m tests.cluster $(CLUSTER)

.PHONY: docs
docs: setup ## write the generated pages of docs/ and the generated manifests from the code
	$(BIN)/python -m flywheel.tools.docs
	$(BIN)/python -m deploy.k8s.generate

.PHONY: format
format: setup ## let ruff put the code in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
