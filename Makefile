# Each target does all its own set-up. What is slow is built once and kept in .cache and target.

OPERATOR := target/debug/ecr-credential-operator
CRD := crds/ecrcredentials.pullsecrets.dev.yaml

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
IMAGE ?= ghcr.io/pullsecrets/ecr-credential-operator:$(VERSION)
ARCHIVE := target/image/ecr-credential-operator.tar
# The image's times are those of the commit, so that building it again gives the same bytes.
IMAGE_EPOCH := $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct 2>/dev/null))

.PHONY: demo test test-oldest chaos chaos-real mutations fuzz image e2e bench bench-small generate check tools help

help: ## Shows what there is.
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: tools ## Runs the main job on a real control plane; KEEP=1 leaves it running.
	@echo "building the operator (the first time takes about 6 minutes on 2 cores)"
	@cargo build --tests --workspace --bins
	@cargo run --quiet --package testbed --bin demo -- --operator $(OPERATOR) --crd $(CRD)

test: tools ## Runs every test, most of them on a real control plane.
	@echo "building the operator and its tests (the first time takes about 6 minutes on 2 cores)"
	cargo test --workspace

test-oldest: tools ## Runs the tests of the CRD, the chart and the behaviour on the oldest Kubernetes that the chart claims.
	CONTROLPLANE_MODULE=controlplane-oldest KUBEBUILDER_ASSETS= cargo test --test crd --test chart --test behaviour

CHAOS_SEED ?= 1

chaos: ## Simulates crashes, faults and months for an hour and writes docs/reliability.md; CHAOS_SEED=n.
	@echo "building the simulation (the first time takes about 8 minutes on 2 cores)"
	@cargo run --quiet --package sim --profile chaos --bin chaos -- --seed $(CHAOS_SEED) --write docs/reliability.md

chaos-real: tools ## Kills the real process around every write to a real API server and writes docs/reliability.md; CHAOS_SEED=n.
	@cargo build --bins && cargo build --package testbed --bin crashes
	@target/debug/crashes --operator $(OPERATOR) --crd $(CRD) --seed $(CHAOS_SEED) --write docs/reliability.md

MUTATION ?=

mutations: tools ## Breaks the operator on purpose and wants the tests to tell how; MUTATION=word takes some.
	@bash tests/mutations/run.sh $(MUTATION)

FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= token grant answer config found names selection plan refresh world verdict status

fuzz: ## Searches for inputs that break a property, FUZZ_SECONDS=60 for each of FUZZ_TARGETS.
	@command -v c++ >/dev/null || { echo "c++ is missing, which builds libFuzzer: install it, on Debian with the package g++"; exit 1; }
	@echo "building the targets with coverage (the first time takes about 6 minutes on 2 cores)"
	@RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/tests/fuzz/instrument.sh cargo build --quiet --package fuzz --features libfuzzer --bin fuzz
	@tests/fuzz/run.sh $(FUZZ_SECONDS) $(FUZZ_TARGETS)

image: ## Makes the container image without Docker; IMAGE=name:tag names it.
	@echo "building the release (the first time takes about 12 minutes on 2 cores)"
	cargo build --release --locked --bin ecr-credential-operator
	@SOURCE_DATE_EPOCH=$(IMAGE_EPOCH) python3 hack/image.py --program target/release/ecr-credential-operator \
		--argument run --port 8080 --name $(IMAGE) --output $(ARCHIVE) \
		--label org.opencontainers.image.title=ecr-credential-operator \
		--label "org.opencontainers.image.description=Keeps Amazon ECR pull Secrets fresh" \
		--label org.opencontainers.image.version=$(VERSION) \
		--label org.opencontainers.image.revision=$(shell git rev-parse HEAD 2>/dev/null) \
		--label org.opencontainers.image.source=https://github.com/pullsecrets/ecr-credential-operator \
		--label org.opencontainers.image.licenses=Apache-2.0

e2e: tools ## Runs the main job on a real node, as root; 77 says that it cannot run here; KEEP=1 leaves it running.
	@cargo build --package testbed --bin e2e
	@target/debug/e2e --check
	@$(MAKE) --no-print-directory image
	@target/debug/e2e --image $(ARCHIVE)

NAMESPACES ?= 500,2000,5000,10000
RUNS ?= 5
CREDENTIALS ?= 100,1000
SAMPLES ?= 200
REST ?= 60
FIGURES ?= target/bench/figures.json
CURVES ?= target/bench

bench: tools image ## Measures it beside a bare client; docs/performance/ says how.
	@echo "building the bare client (the first time takes about 8 minutes on 2 cores)"
	@cargo build --profile fast --package testbed --bin bench
	@target/fast/bench --operator target/release/ecr-credential-operator --crd $(CRD) --image $(ARCHIVE) \
		--namespaces $(NAMESPACES) --runs $(RUNS) --credentials $(CREDENTIALS) --samples $(SAMPLES) --rest $(REST) \
		--json $(FIGURES) --curves $(CURVES)

# The release, where it has been built, and else what the tests use.
BENCHED = $(or $(wildcard target/release/ecr-credential-operator),$(OPERATOR))

bench-small: tools ## Prints the figures of a small run in two minutes; beside a bare client that is no release.
	@cargo build --package testbed --bin bench
	@target/debug/bench --operator $(BENCHED) --crd $(CRD) --namespaces 50,500 --runs 2 --credentials 20 --samples 20 --rest 5 \
		--json target/bench/small.json

generate: ## Writes the files that are made from others.
	cargo build --tests --workspace --bins
	$(OPERATOR) crd > $(CRD).new && mv $(CRD).new $(CRD)
	UPDATE=1 cargo test --test chart current

check: ## What CI checks besides the tests: format, lints, generated files.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

tools:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.95 or later with rustup"; exit 1; }
	@if [ -z "$$KUBEBUILDER_ASSETS" ]; then command -v go >/dev/null || { echo "go is missing: install Go 1.26 or later, or set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver"; exit 1; }; fi
