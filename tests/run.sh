#!/usr/bin/env bash
# Runs all tests side by side: `run.sh` for all that need no root, `run.sh oldest` for what can differ on the oldest Kubernetes.
# Most tests wait for something most of the time, so that several run on one core. Every suite runs to its end, whatever fails.
# TIMES=n prints the n longest tests as well. The whole output of each suite stays in target/tests.
set -euo pipefail
cd "$(dirname "$0")/.."

# What asks no question of the API server that a test of another module does not ask, or none at all.
same_on_every_version=(
  agents:: away:: faults:: identity:: moto:: refresh:: registries:: secrecy:: startup::
  identities::caching:: identities::chains:: identities::check:: identities::endpoints:: identities::refusals::
  alerts:: current:: image:: values::
)

logs=$PWD/target/tests
cores=$(getconf _NPROCESSORS_ONLN)
what=${1:-all}
started=$SECONDS
rm -rf "$logs" && mkdir -p "$logs"
# Where the recorder lists what tests may break on purpose, and why.
export EXCUSES=$logs/excuses
# The servers of the control plane collect garbage less often, which is a sixth of their CPU time.
export GOGC=${GOGC:-400}

filters=()
select=(--workspace)
if [ "$what" = oldest ]; then
  export CONTROLPLANE_MODULE=controlplane-oldest KUBEBUILDER_ASSETS=
  for module in "${same_on_every_version[@]}"; do filters+=(--skip "$module"); done
  select=(--workspace --test crd --test chart --test behaviour)
fi
[ -z "${TIMES:-}" ] || filters+=(-Z unstable-options --report-time)

[ "$what" = oldest ] || hack/build.sh tests
cargo test "${select[@]}" --no-run --message-format=json-render-diagnostics >"$logs/build.json"
# One line for each test program: its name, its package's folder, its path.
sed -n 's|.*"manifest_path":"\([^"]*\)/Cargo.toml".*"name":"\([^"]*\)","src_path".*"overflow_checks":[a-z]*,"test":true}.*"executable":"\([^"]*\)".*|\2 \1 \3|p' \
  "$logs/build.json" >"$logs/programs"

# run NICENESS THREADS NAME FOLDER PROGRAM: runs one program and notes its end.
run() {
  local niceness=$1 threads=$2 name=$3 folder=$4 program=$5 status=0
  local log=$logs/$name-$(basename "$folder").log
  (cd "$folder" && CARGO_MANIFEST_DIR=$folder RUST_TEST_THREADS=$threads ${TIMES:+env RUSTC_BOOTSTRAP=1} \
    nice -n "$niceness" "$program" "${filters[@]}") >"$log" 2>&1 </dev/null || status=$?
  echo "$status $name $log" >>"$logs/ended"
}

# lane NICENESS PROGRAMS THREADS NAME...: runs the programs of these names, so many at a time with so many threads each.
lane() {
  local niceness=$1 programs=$2 threads=$3 name folder program
  shift 3
  # One process group for the whole lane.
  set +m
  while read -r name folder program; do
    case " $* " in *" $name "*) ;; *) continue ;; esac
    while [ "$(jobs -rp | wc -l)" -ge "$programs" ]; do wait -n || true; done
    run "$niceness" "$threads" "$name" "$folder" "$program" &
  done <"$logs/programs"
  wait
}

count() { cat "$logs"/*.log 2>/dev/null | grep -cE "$1" || true; }

# What waits for an API server, what starts one for itself, and what computes.
serving="chart control_plane crd docs likeness"
computing=$(cut -d' ' -f1 "$logs/programs" | sort -u | sed -E "/^(behaviour|${serving// /|})\$/d" | tr '\n' ' ')
: >"$logs/ended"
# Each lane is a process group of its own, so that whoever interrupts this ends all of it.
set -m
lane 0 1 $((cores * 3)) behaviour &
lane 0 1 "$cores" $serving &
# The simulations have one thread each.
lane 10 "$cores" "$cores" $computing &
trap 'for lane in $(jobs -p); do kill -- "-$lane" 2>/dev/null || true; done' EXIT

total=$(wc -l <"$logs/programs") said=0 beat=$SECONDS
while :; do
  ended=$(wc -l <"$logs/ended")
  while [ "$said" -lt "$ended" ]; do
    said=$((said + 1))
    read -r status name log < <(sed -n "${said}p" "$logs/ended")
    # A program without tests is not worth a line.
    grep -q '^running 0 tests' "$log" && [ "$status" -eq 0 ] && continue
    printf '%-34s %s\n' "$name" "$(grep '^test result' "$log" || echo "ended with $status before its result")"
    [ "$status" -eq 0 ] || { sed -n '/^failures:/,$p' "$log" | grep . || tail -n 50 "$log"; }
  done
  [ "$ended" -lt "$total" ] || break
  if [ $((SECONDS - beat)) -ge 15 ]; then
    beat=$SECONDS
    all=$(cat "$logs"/*.log | awk '/^running [0-9]+ tests?$/ { sum += $2 } END { print sum + 0 }')
    printf '%dm%02ds: %d of %s tests passed so far, %d of %d programs have ended\n' $(((SECONDS - started) / 60)) \
      $(((SECONDS - started) % 60)) "$(count '^test .* \.\.\. ok')" "$all" "$ended" "$total"
  fi
  sleep 1
done

if [ -n "${TIMES:-}" ]; then
  echo "the longest:"
  sed -n 's/^test \(.*\) \.\.\. [a-zA-Z]* <\(.*\)s>$/\2 \1/p' "$logs"/*.log | sort -rn | head -n "$TIMES"
fi
failed=$(grep -cv '^0 ' "$logs/ended" || true)
[ ! -s "$EXCUSES" ] || echo "$(wc -l <"$EXCUSES") excuses were granted to tests: see target/tests/excuses"
printf '%s passed, %s failed\n' "$(count '^test .* \.\.\. ok')" "$(count '^test .* \.\.\. FAILED')"
printf 'after %dm%02ds\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60))
[ "$failed" -eq 0 ] || { echo "$failed of $total test programs failed; their output is in target/tests"; exit 1; }
