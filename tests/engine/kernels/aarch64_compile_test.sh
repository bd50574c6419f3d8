#!/bin/sh
# Every source of engine/kernels compiles for a machine that has none of the x86 tiers.
#
# usage: aarch64_compile_test.sh SOURCE_DIR ABSEIL_INCLUDE_DIR
set -eu
source_dir=$1
absl_include=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Only Abseil's headers: the rest of that directory belongs to this machine's C library.
mkdir "$work/include"
ln -s "$absl_include/absl" "$work/include/absl"

count=0
for source in "$source_dir"/engine/kernels/*.cc; do
  case $source in
    */tier_avx2.cc | */tier_avx512.cc | */tier_avx512vnni.cc | */tier_avx512bf16.cc) continue ;; # CMake adds them on x86-64 only
  esac
  aarch64-linux-gnu-g++ -std=c++20 -O2 -Wall -Wextra -Werror -ffp-contract=off -I"$source_dir" -I"$work/include" \
    -c "$source" -o "$work/out.o"
  count=$((count + 1))
done
if [ "$count" -lt 4 ]; then
  echo "FAIL: only $count sources found in $source_dir/engine/kernels"
  exit 1
fi
echo "$count sources compile for aarch64"
