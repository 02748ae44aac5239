# Each target does all its own set-up. What is slow is built once and kept in .cache and target.

OPERATOR := target/debug/ecr-credential-operator
CRD := crds/ecrcredentials.pullsecrets.dev.yaml

.PHONY: demo test generate check tools help

help: ## Shows what there is.
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: tools ## Runs the main job on a real control plane; KEEP=1 leaves it running.
	@echo "building the operator (the first time takes about 6 minutes on 2 cores)"
	@cargo build --tests --workspace --bins
	@cargo run --quiet --package testbed --bin demo -- --operator $(OPERATOR) --crd $(CRD)

test: tools ## Runs every test, most of them on a real control plane.
	@echo "building the operator and its tests (the first time takes about 6 minutes on 2 cores)"
	cargo test --workspace

generate: ## Writes the files that are made from others.
	cargo build --tests --workspace --bins
	$(OPERATOR) crd > $(CRD).new && mv $(CRD).new $(CRD)

check: ## What CI checks besides the tests: format, lints, generated files.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

tools:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.95 or later with rustup"; exit 1; }
	@if [ -z "$$KUBEBUILDER_ASSETS" ]; then command -v go >/dev/null || { echo "go is missing: install Go 1.26 or later, or set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver"; exit 1; }; fi
