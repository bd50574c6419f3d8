#!/usr/bin/env bash
# Installs what the tests need, builds, runs every test, and closes with the line "N passed, N failed".
#
#   tests/run.sh               build, unit, e2e, install, python, bench, tsan, fuzz (what CI runs)
#   tests/run.sh --full        every step but the oracle
#   tests/run.sh --fast        build, unit and e2e
#   tests/run.sh --only STEP   one step; may be repeated
#   tests/run.sh --oracle      besides, the references must give the golden files again
#
# Steps:
#   build    release build with g++
#   unit     every CTest test of it
#   e2e      real processes and sockets (pytest)
#   install  installed to another prefix and moved, the programs run from there
#   python   the package in client/python: built, installed, tested (pytest); the first time 3 GB are downloaded
#   bench    decode reads weights at 60% of the measured bandwidth at least (pytest)
#   browser  the page of moe-extract report in Chromium, which it installs
#   clang    everything once more with clang 19, for its warnings
#   tsan     ThreadSanitizer on engine and scheduler
#   leaks    the crowd of streams against a server with AddressSanitizer and UndefinedBehaviorSanitizer
#   asan     both sanitizers on every test of what reads outside data
#   fuzz     every fuzz target for a minute
#   oracle   PyTorch and Transformers, in a virtual environment (only with --oracle)
#
# Logs are in build/test-logs/. Environment: SCION_FUZZ_SECONDS, default 60.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source deploy/progress.sh
exec </dev/null

ci_steps=(build unit e2e install python bench tsan fuzz)
all_steps=("${ci_steps[@]}" browser leaks clang asan)
# gguf_vocabulary checks more than that nothing breaks, and still finds something now and then.
fuzz_targets=(safetensors gguf config tokenizer)
steps=()
oracle=false
while [ $# -gt 0 ]; do
  case $1 in
    --fast) steps=(build unit e2e) ;;
    --full)
      steps=("${all_steps[@]}")
      fuzz_targets+=(gguf_vocabulary)
      ;;
    --oracle) oracle=true ;;
    --only)
      [[ " ${all_steps[*]} oracle " == *" ${2-} "* ]] || { echo "tests/run.sh: no step '${2-}'; --help lists them" >&2 && exit 2; }
      steps+=("$2")
      shift
      ;;
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' tests/run.sh && exit 0 ;;
    *) echo "tests/run.sh: unknown argument $1; see --help" >&2 && exit 2 ;;
  esac
  shift
done
[ ${#steps[@]} -gt 0 ] || steps=("${ci_steps[@]}")
! $oracle || steps+=(oracle)

trap 'status=$?; trap - EXIT; end_children; exit "$status"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

logs=build/test-logs
rm -rf "$logs"
mkdir -p "$logs"
passed=0
failed=0

# count PASSED FAILED
count() {
  passed=$((passed + $1))
  failed=$((failed + $2))
}

# One check that is no test program: check NAME COMMAND...
check() {
  local name=$1
  shift
  if with_progress "$logs/$name.log" "$@"; then
    count 1 0
  else
    tail -n 60 "$logs/$name.log"
    echo "FAILED: $name"
    count 0 1
  fi
}

# Adds up what a JUnit file of ctest or pytest says, and names the failures. No file, no test in it: a failure.
count_junit() {
  local totals
  python3 -B tests/count_junit.py "$1" | tee "$logs/counted"
  totals=$(tail -n 1 "$logs/counted")
  # shellcheck disable=SC2086
  count ${totals//[!0-9 ]/}
}

# build PRESET [TARGET...]: configures and builds; a failure counts as one and says so.
build() {
  local preset=$1 log=$logs/build-$1.log options=()
  shift
  [ $# -eq 0 ] || options=(--target "$@")
  if with_progress "$log" cmake --preset "$preset" -DSCION_BUILD_TESTS="$([ "$preset" = fuzz ] && echo OFF || echo ON)" &&
    with_progress "$log" cmake --build "build/$preset" -j "$(parallel_jobs)" "${options[@]}"; then
    return 0
  fi
  grep -E 'error|FAILED|Error' "$log" | head -n 20 || true
  tail -n 30 "$log"
  echo "FAILED: build of $preset"
  count 0 1
  return 1
}

# run_ctest PRESET [CTEST ARGUMENT...]
run_ctest() {
  local preset=$1 junit=$PWD/$logs/ctest-$1.xml
  shift
  with_progress "$logs/ctest-$preset.log" ctest --test-dir "build/$preset" --output-on-failure --no-tests=error \
    -j "$(nproc)" --output-junit "$junit" --test-output-size-passed 1000000 --test-output-size-failed 1000000 "$@" || true
  grep -A 60 '\*\*\*' "$logs/ctest-$preset.log" | head -n 200 || true
  count_junit "$junit"
}

# The release build of this run: made once, whichever step asks first.
release_built=
release_build() {
  [ -n "$release_built" ] || { build release && release_built=yes || release_built=no; }
  [ "$release_built" = yes ]
}

step_build() { ! release_build || count 1 0; }

step_unit() {
  release_build || return 0
  run_ctest release
}

# run_pytest NAME [PYTEST ARGUMENT...]
run_pytest() {
  local name=$1
  shift
  with_progress "$logs/$name.log" tests/e2e/run.sh --junitxml="$PWD/$logs/$name.xml" "$@" ||
    tail -n 150 "$logs/$name.log"
  count_junit "$logs/$name.xml"
}

step_e2e() {
  release_build || return 0
  run_pytest e2e
}

step_install() {
  release_build || return 0
  check install tests/install_test.sh build/release
}

step_python() {
  release_build || return 0
  with_progress "$logs/python.log" client/python/tests/run.sh --junitxml="$PWD/$logs/python.xml" ||
    tail -n 150 "$logs/python.log"
  count_junit "$logs/python.xml"
}

step_bench() {
  release_build || return 0
  run_pytest bench ../bench/smoke_test.py
}

step_browser() {
  release_build || return 0
  deploy/packages.sh browser
  check browser python3 -B tests/browser/report_page_test.py --moe-extract build/release/bin/moe-extract
}

# Unlike the others, nothing runs here: that it compiles without a warning is the check.
step_clang() { ! build clang || count 1 0; }

step_asan() {
  build asan-ubsan tests/engine/{base,kernels,model,text}/all tests/{extract,server,client}/all moe-serve || return 0
  run_ctest asan-ubsan -L '^(engine/base|engine/kernels|engine/model|engine/text|extract|server|client)$'
}

step_leaks() {
  build asan-ubsan moe-serve || return 0
  SCION_BIN_ASAN=$PWD/build/asan-ubsan/bin run_pytest e2e-asan test_streams.py -k asan
}

step_tsan() {
  local tests=(engine_test scheduler_test step_budget_test thread_pool_test kv_cache_test prefix_cache_test route_plan_test)
  build tsan "${tests[@]}" || return 0
  run_ctest tsan -R "^($(IFS='|' && echo "${tests[*]}"))\$"
}

step_fuzz() {
  build fuzz tests/fuzz/all || return 0
  local target
  for target in "${fuzz_targets[@]}"; do
    check "fuzz-$target" tests/fuzz/run.sh "${SCION_FUZZ_SECONDS:-60}" "$target"
  done
}

step_oracle() {
  release_build || return 0
  check oracle tests/oracle/run.sh
}

echo "== packages"
deploy/packages.sh build test

for step in "${steps[@]}"; do
  began=$SECONDS
  passed_before=$passed
  failed_before=$failed
  echo
  echo "== $step"
  "step_$step"
  echo "== $step: $((passed - passed_before)) passed, $((failed - failed_before)) failed, $((SECONDS - began)) s"
done

echo
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
