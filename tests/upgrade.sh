#!/usr/bin/env bash
# Upgrades from the operator and CRD of an earlier commit, and back: `upgrade.sh [COMMIT]`. Without one it is the last tag, or the
# oldest of the last 50 commits where there is none. The earlier operator is built once.
set -euo pipefail
cd "$(dirname "$0")/.."

from=${1:-$(git describe --tags --abbrev=0 2>/dev/null || git rev-list --max-count=50 HEAD | tail -n 1)}
commit=$(git rev-parse --verify "$from^{commit}")
base=$PWD/target/upgrade
tree=$base/$commit
operator=$base/operator-$commit
if [ ! -x "$operator" ]; then
  rm -rf "$tree" && mkdir -p "$tree"
  git archive "$commit" | tar --extract --directory "$tree"
  echo "building the operator of $(git log -1 --format='%h of %cs' "$commit")"
  (cd "$tree" && CARGO_TARGET_DIR=$base/target cargo build --quiet --workspace --bin ecr-credential-operator)
  cp "$base/target/debug/ecr-credential-operator" "$operator.partial"
  mv "$operator.partial" "$operator"
fi
OLD_OPERATOR=$operator OLD_CRD=$tree/crds/ecrcredentials.pullsecrets.dev.yaml \
  cargo test --workspace --test behaviour upgrade:: -- --ignored
