#!/bin/sh
# The object files of the AVX2 and AVX-512 tiers define nothing but their table: a weak symbol (an inline function or template of
# a shared header) could be what the linker picks for the portable path, and a machine without them would die of it.
# And no tier's object file refers to an allocation function.
#
# usage: isolation_test.sh NM LIBRARY [TIER...]
set -eu
nm=$1
library=$2
shift 2

symbols=$("$nm" -A -C "$library")
for tier in Portable "$@"; do
  if ! printf '%s\n' "$symbols" | grep -qi "tier_$tier.cc.o:.*[ :]k${tier}Table"; then
    echo "FAIL: $library holds no tier $tier: is the check looking at the right file?"
    exit 1
  fi
done

failed=0
# The sanitisers' own symbols are not ours.
shared=$(printf '%s\n' "$symbols" | grep 'tier_avx[a-z0-9]*\.cc\.o:' | grep -E ' [WwVvuT] ' |
  grep -vE ' (w|W|V|T) (__asan|__ubsan|__odr_asan|__tsan|asan\.|_GLOBAL__|DW\.ref)' || true)
if [ -n "$shared" ]; then
  echo "FAIL: symbols that the linker may share with other files:"
  printf '%s\n' "$shared"
  failed=1
fi
allocating=$(printf '%s\n' "$symbols" | grep 'tier_[a-z0-9]*\.cc\.o:' |
  grep -E ' U (operator new|operator delete|malloc|calloc|realloc|free|posix_memalign|aligned_alloc)' || true)
if [ -n "$allocating" ]; then
  echo "FAIL: a kernel that allocates:"
  printf '%s\n' "$allocating"
  failed=1
fi
exit $failed
