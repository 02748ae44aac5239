#!/usr/bin/env bash
# run.sh SECONDS TARGET...: each target under libFuzzer for so long, beginning with its corpus. What it learns stays in
# target/fuzz, what breaks a property in target/fuzz/found. Ends with 1 if anything does.
# MINIMISE=1 puts the fewest inputs that reach as much into the corpus afterwards, at most 40 for each target.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=$1
shift
bad=0
for target in "$@"; do
  corpus=tests/fuzz/corpus/$target learned=target/fuzz/learned/$target found=target/fuzz/found/$target
  log=target/fuzz/$target.log
  mkdir -p "$learned" "$found" "$corpus"
  printf '%-10s %s s ... ' "$target" "$seconds"
  status=0
  FUZZ_TARGET=$target target/debug/fuzz "$learned" "$corpus" -max_total_time="$seconds" -max_len=4096 -timeout=10 \
    -rss_limit_mb=1024 -print_final_stats=1 -artifact_prefix="$found/" >"$log" 2>&1 || status=$?
  runs=$(sed -n 's/^stat::number_of_executed_units: //p' "$log")
  reached=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -1)
  echo "${runs:-0} inputs, ${reached:-0} edges reached"
  if [ "$status" -ne 0 ]; then
    bad=1
    grep -a -m1 -A4 'panicked at' "$log" || tail -5 "$log"
    echo "  the input is in $found/; once it is mended, keep it as $corpus/found-WHAT"
  fi
  if [ -n "${MINIMISE:-}" ] && [ "$status" -eq 0 ]; then
    fewest=target/fuzz/fewest/$target
    rm -rf "$fewest" && mkdir -p "$fewest"
    FUZZ_TARGET=$target target/debug/fuzz -merge=1 "$fewest" "$corpus" "$learned" >>"$log" 2>&1
    # The small ones: they are read first when something breaks.
    find "$fewest" -type f -size -4k -printf '%s %p\n' | sort -n | head -40 | while read -r _ file; do
      # libFuzzer names a file by the SHA-1 of its bytes.
      sha1sum "$corpus"/* | grep -q "^$(basename "$file")" || cp "$file" "$corpus/reach-$(basename "$file" | cut -c1-12)"
    done
  fi
done
exit "$bad"
