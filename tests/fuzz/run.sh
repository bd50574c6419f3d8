#!/bin/sh
# usage: tests/fuzz/run.sh [SECONDS] [TARGET...]
# Builds the fuzz targets and runs each for SECONDS (default 60) from its seed corpus. Exit 1 if one finds something: the
# input is kept beside the growing corpus, in build/fuzz/findings/.
set -eu
cd "$(dirname "$0")/../.."
seconds=${1:-60}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- safetensors gguf config tokenizer gguf_vocabulary
build=${SCION_FUZZ_BUILD_DIR:-build/fuzz}
jobs=$(nproc)

cmake --preset fuzz -B "$build" >/dev/null
for target in "$@"; do
  cmake --build "$build" -j "$jobs" --target "fuzz_$target"
done
status=0
for target in "$@"; do
  echo "== fuzz_$target: $seconds s"
  mkdir -p "$build/corpus/$target" "$build/findings"
  "$build/bin/fuzz_$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
    -verbosity=0 -artifact_prefix="$build/findings/$target-" "$build/corpus/$target" "tests/fuzz/corpus/$target" || status=1
done
exit $status
