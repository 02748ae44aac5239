#!/usr/bin/env bash
# Builds with Cargo and Go side by side, and says how far both are: `build.sh demo` what the demo runs, `build.sh tests` what the
# tests need. What has been built before takes a second.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
demo)
  # Selected together, so that Cargo builds the dependencies with the features that the tests want of them too.
  packages=(--package ecr-credential-operator --package testbed)
  cargo=(build "${packages[@]}" --bin ecr-credential-operator --bin demo)
  edges=normal,build
  tools=(controlplane)
  ;;
tests)
  packages=(--workspace)
  cargo=(test --workspace --no-run)
  edges=normal,build,dev
  tools=("${CONTROLPLANE_MODULE:-controlplane}" kubectl helm-v3 helm-v4 promtool prometheus-crds external-secrets-crds)
  ;;
*) echo "usage: $0 demo|tests" >&2 && exit 2 ;;
esac
# Who brings the servers needs none built.
[ -z "${KUBEBUILDER_ASSETS:-}" ] || tools=("${tools[@]:1}")

missing() { echo "$1 is missing: $2" >&2 && exit 1; }
command -v cargo >/dev/null || missing cargo "install Rust 1.95 or later with rustup (https://rustup.rs)"
command -v cc >/dev/null || missing "a C compiler" "install gcc, on Debian with: apt-get install gcc libc6-dev"
[ ${#tools[@]} -eq 0 ] || command -v go >/dev/null || missing go \
  "install Go 1.26 or later (https://go.dev/dl), or for the demo set KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver and kube-controller-manager"
[ "$1" = demo ] || command -v python3 >/dev/null || missing python3 "install Python 3 with venv, on Debian with: apt-get install python3-venv"

mkdir -p target
# Each build is a process group of its own, so that whoever interrupts this ends both.
set -m
crates=target/build-$1.log programs=target/build-$1-go.log
cargo "${cargo[@]}" >"$crates" 2>&1 &
with_cargo=$!
for tool in "${tools[@]}"; do
  sh tests/tools/get.sh "$tool" || exit
done >"$programs" 2>&1 &
with_go=$!
trap 'kill -- "-$with_cargo" "-$with_go" 2>/dev/null' EXIT

total=$(cargo tree "${packages[@]}" --edges "$edges" --prefix none 2>/dev/null | cut -d' ' -f1,2 | sort -u | wc -l)
show() {
  local compiled progress="has begun no crate yet (what is in target is reused)"
  compiled=$(grep -c '^ *Compiling ' "$crates" || true)
  [ "$compiled" -eq 0 ] || progress="has begun $compiled of at most $total crates"
  printf '%dm%02ds: Cargo %s; Go %s\n' $((SECONDS / 60)) $((SECONDS % 60)) \
    "$(kill -0 "$with_cargo" 2>/dev/null && echo "$progress" || echo "is done")" \
    "$(kill -0 "$with_go" 2>/dev/null && { tail -n 1 "$programs" | grep . || echo "begins"; } || echo "is done")"
}
next=10
while kill -0 "$with_cargo" 2>/dev/null || kill -0 "$with_go" 2>/dev/null; do
  [ "$SECONDS" -lt "$next" ] || { show && next=$((SECONDS + 15)); }
  sleep 0.5
done
wait "$with_cargo" || { grep -vE '^ *(Compiling|Downloaded|Downloading) ' "$crates" | tail -n 60 && exit 1; }
wait "$with_go" || { tail -n 30 "$programs" && exit 1; }
trap - EXIT
