#!/bin/sh
# Compiles the crates of this workspace with coverage as libFuzzer reads it; everything else is shared with other builds.
# These are flags of the stable compiler: the pass is LLVM's own, which `cargo fuzz --sanitizer none` asks for as well.
rustc=$1
shift
# A build script runs in the build itself, which has no libFuzzer.
case " $* " in *" build_script_build "*) exec "$rustc" "$@" ;; esac
exec "$rustc" "$@" -Copt-level=1 -Cpasses=sancov-module \
  -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
