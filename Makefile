# Each target does all its own set-up. What is slow is built once and kept in .cache and target.

OPERATOR := target/debug/ecr-credential-operator
CRD := crds/ecrcredentials.pullsecrets.dev.yaml

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
IMAGE ?= ghcr.io/pullsecrets/ecr-credential-operator:$(VERSION)
ARCHIVE := target/image/ecr-credential-operator.tar
# The image's times are those of the commit, so that building it again gives the same bytes.
IMAGE_EPOCH := $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct 2>/dev/null))

.PHONY: demo test-unit test test-oldest test-upgrade consumers check supply-chain notices advisories docs mutants chaos chaos-real \
	mutations fuzz image dockerfile release e2e bench bench-small generate tools help

help: ## Shows what there is. The times are for 2 cores, with all built; building it all takes 12 minutes once.
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Shows the main job on a real control plane (20 s; the first time 10 min); KEEP=1 leaves it running.
	@hack/build.sh demo
	@target/debug/demo --operator $(OPERATOR) --crd $(CRD)

test-unit: ## Runs the unit tests and the test of the architecture (25 s, and 5 s to build after a change).
	cargo test --lib --test rooms

test: ## Runs every test that needs no root, most of them on a real control plane (11 min); TIMES=20 lists the longest.
	@tests/run.sh

test-oldest: tools ## Runs what can differ on the oldest Kubernetes that the chart claims (5 min).
	@tests/run.sh oldest

consumers: ## Lets Argo CD, Flux, helm, skopeo and crane pull with the Secrets that the operator writes (1 min; the first time 10 min).
	@tests/consumers/run.sh

FROM ?=

test-upgrade: tools ## Upgrades from the operator of an earlier commit and back (2 min, and the build of that operator); FROM=commit.
	@tests/upgrade.sh $(FROM)

supply-chain: ## Checks licenses, notices, sources, unused dependencies, and the workflows (12 s; the first time 4 min).
	@"$$(sh tests/tools/get.sh cargo-deny)" --workspace --locked check licenses bans sources
	@"$$(sh tests/tools/get.sh cargo-machete)"
	@hack/notices.py --check
	@if ls .github/workflows/*.y*ml >/dev/null 2>&1; then "$$(sh tests/tools/get.sh actionlint)"; else echo "no workflows"; fi

notices: ## Writes the licenses of all crates that the image contains (2 s).
	@hack/notices.py

docs: ## Builds the book of docs/ into target/book and checks its links (5 s; the first time 2 min).
	@hack/docs.sh

advisories: ## Checks the dependencies against RustSec's database, which has to be fetched from GitHub (20 s).
	@"$$(sh tests/tools/get.sh cargo-deny)" --workspace --locked check advisories

SINCE ?=

mutants: ## Changes the pure modules line by line and wants their unit tests to notice (2 h); SINCE=commit takes what changed since.
	@tests/mutants.sh $(SINCE)

CHAOS_SEED ?= 1

chaos: ## Simulates crashes, faults and months and writes docs/reliability.md (1 h); CHAOS_SEED=n.
	@echo "building the simulation (the first time takes about 8 minutes on 2 cores)"
	@cargo run --quiet --package sim --profile chaos --bin chaos -- --seed $(CHAOS_SEED) --write docs/reliability.md

chaos-real: tools ## Kills the real process around every write to a real API server and writes docs/reliability.md (10 min); CHAOS_SEED=n.
	@cargo build --workspace --bin ecr-credential-operator --bin crashes
	@target/debug/crashes --operator $(OPERATOR) --crd $(CRD) --seed $(CHAOS_SEED) --write docs/reliability.md

MUTATION ?=

mutations: tools ## Breaks the operator in many ways and wants the test that is named to fail (1 h); MUTATION=word,word, TOGETHER=1 (15 min).
	@cargo build --quiet --workspace --bin mutations
	@target/debug/mutations $(if $(TOGETHER),--together) $(MUTATION)

FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= token grant answer config found names selection plan refresh lists world verdict status

fuzz: ## Searches for inputs that break a property (12 min, FUZZ_SECONDS=60 for each of FUZZ_TARGETS); needs g++.
	@command -v c++ >/dev/null || { echo "c++ is missing, which builds libFuzzer: install it, on Debian with the package g++"; exit 1; }
	@echo "building the targets with coverage (the first time takes about 6 minutes on 2 cores)"
	@RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/tests/fuzz/instrument.sh cargo build --quiet --package fuzz --features libfuzzer --bin fuzz
	@tests/fuzz/run.sh $(FUZZ_SECONDS) $(FUZZ_TARGETS)

release: ## Builds the release (12 min, most of it on one core).
	cargo build --release --locked --bin ecr-credential-operator

image: release ## Makes the container image of the release without Docker (1 s); IMAGE=name:tag names it.
	@SOURCE_DATE_EPOCH=$(IMAGE_EPOCH) python3 hack/image.py --program target/release/ecr-credential-operator \
		--argument run --port 8080 --name $(IMAGE) --output $(ARCHIVE) \
		--label org.opencontainers.image.title=ecr-credential-operator \
		--label "org.opencontainers.image.description=Keeps Amazon ECR pull secrets fresh" \
		--label org.opencontainers.image.version=$(VERSION) \
		--label org.opencontainers.image.revision=$(shell git rev-parse HEAD 2>/dev/null) \
		--label org.opencontainers.image.source=https://github.com/pullsecrets/ecr-credential-operator \
		--label org.opencontainers.image.licenses=Apache-2.0

dockerfile: ## Builds the Dockerfile twice on stand-ins for its base images, as root, and compares the images (compiles twice; 3 min with PROGRAM=path, which compiles nothing).
	@hack/dockerfile.sh

e2e: tools ## Runs the main job on a real node, as root (2 min); 77 says that it cannot run here; KEEP=1 leaves it running.
	@cargo build --workspace --bin e2e
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

bench: tools image ## Measures it beside a bare client (30 min); docs/performance/ says how.
	@echo "building the bare client (the first time takes about 8 minutes on 2 cores)"
	@cargo build --profile fast --package testbed --bin bench
	@target/fast/bench --operator target/release/ecr-credential-operator --crd $(CRD) --image $(ARCHIVE) \
		--namespaces $(NAMESPACES) --runs $(RUNS) --credentials $(CREDENTIALS) --samples $(SAMPLES) --rest $(REST) \
		--json $(FIGURES) --curves $(CURVES)

# The release, where it has been built, and else what the tests use.
BENCHED = $(or $(wildcard target/release/ecr-credential-operator),$(OPERATOR))

bench-small: tools ## Prints the figures of a small run, beside a bare client that is no release (2 min).
	@cargo build --workspace --bin bench
	@target/debug/bench --operator $(BENCHED) --crd $(CRD) --namespaces 50,500 --runs 2 --credentials 20 --samples 20 --rest 5 \
		--json target/bench/small.json

generate: ## Writes the files that are made from others (10 s).
	cargo test --workspace --no-run
	$(OPERATOR) crd > $(CRD).new && mv $(CRD).new $(CRD)
	UPDATE=1 cargo test --test chart --test docs current

check: ## Checks format and lints (2 min).
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

tools:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.95 or later with rustup"; exit 1; }
	@if [ -z "$$KUBEBUILDER_ASSETS" ]; then command -v go >/dev/null || { echo "go is missing: install Go 1.26 or later, or set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver"; exit 1; }; fi
