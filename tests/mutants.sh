#!/usr/bin/env bash
# Changes the pure modules one place at a time and runs their unit tests: `mutants.sh` all of them, `mutants.sh COMMIT` the lines that
# differ from it. MUTANTS_SECONDS=n stops after so long. The last lines count; target/mutants/mutants.out lists what was missed.
set -euo pipefail
cd "$(dirname "$0")/.."

program=$(sh tests/tools/get.sh cargo-mutants)
mkdir -p target/mutants
arguments=(--output target/mutants --no-shuffle --colors never --jobs 1 --baseline skip --timeout 60)
if [ -n "${1:-}" ]; then
  git diff "$1" -- src >target/mutants/diff
  [ -s target/mutants/diff ] || { echo "nothing in src has changed since $1" && exit; }
  arguments+=(--in-diff target/mutants/diff)
fi
rm -rf target/mutants/mutants.out target/mutants/mutants.out.old
# The dependencies are those of the tests; only the crate itself is built again in the copy that is changed.
status=0
CARGO_TARGET_DIR=$PWD/target timeout --signal INT "${MUTANTS_SECONDS:-0}" "$program" mutants "${arguments[@]}" || status=$?
lines() { cat "target/mutants/mutants.out/$1.txt" 2>/dev/null | wc -l; }
caught=$(lines caught) missed=$(lines missed) timeouts=$(lines timeout)
tried=$((caught + missed + timeouts))
[ "$tried" -gt 0 ] || { echo "no mutant was tried (cargo-mutants ended with $status)" && exit; }
[ "$status" -ne 124 ] || echo "stopped after $MUTANTS_SECONDS s"
echo "$((caught + timeouts)) of $tried mutants were noticed ($(((caught + timeouts) * 100 / tried)) %), $missed were not"
