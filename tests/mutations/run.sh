#!/usr/bin/env bash
# Proves that the checks can fail: applies each patch to a copy of the tree and wants the invariant that it names to catch it.
# With a word it takes the patches alone that have it in their names.
set -euo pipefail
cd "$(dirname "$0")/../.."

root=$PWD
tree=$root/target/mutations/tree
# Not the folder of the sound operator: cargo takes the one for the other.
export CARGO_TARGET_DIR=$root/target/mutations/target
caught=0 missed=0

# The real binary is tried by the tests at the top, its parts by those of the simulation and those of the fuzz targets.
package() {
  if [ -e "tests/$1" ]; then echo ecr-credential-operator; elif [ -e "tests/fuzz/tests/$1.rs" ]; then echo fuzz; else echo sim; fi
}

for patch in tests/mutations/*${1:-}*.patch; do
  line=$(grep -m1 '^Caught by ' "$patch")
  read -r _ _ invariant _ test filter <<<"${line%.}"
  rm -rf "$tree" && mkdir -p "$tree"
  git ls-files | tar --create --files-from=- | tar --extract --directory "$tree"
  mkdir -p .cache && ln -s "$root/.cache" "$tree/.cache"
  patch --quiet --strip=1 --directory "$tree" <"$patch"
  log=$root/target/mutations/$(basename "$patch" .patch).log
  if ! (cd "$tree" && cargo build --quiet -p "$(package "$test")" --test "$test") >"$log" 2>&1; then
    echo "does not build: $patch (see $log)"; missed=$((missed + 1)); continue
  fi
  if (cd "$tree" && RUST_BACKTRACE=0 cargo test --quiet -p "$(package "$test")" --test "$test" ${filter:-}) >>"$log" 2>&1; then
    echo "not caught:     $(basename "$patch")"; missed=$((missed + 1))
  elif grep -qw "$invariant" "$log"; then
    echo "caught by $invariant: $(basename "$patch")"; caught=$((caught + 1))
  else
    echo "caught, but not by $invariant: $(basename "$patch") (see $log)"; missed=$((missed + 1))
  fi
done
echo "$caught caught, $missed not"
[ "$missed" -eq 0 ]
