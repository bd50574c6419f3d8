#!/usr/bin/env bash
# What `cmake --install` puts somewhere works there, also after it was moved, and without the build folder's libraries.
#
# usage: install_test.sh BUILD_DIRECTORY
set -euo pipefail
build=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/first" --strip
mv "$work/first" "$work/moved"
for program in moe-serve moe-client moe-extract; do
  installed=$work/moved/bin/$program
  version=$("$installed" --version)
  echo "$version"
  [[ $version == "$program "[0-9]* ]] || { echo "FAIL: $program --version says '$version'" && exit 1; }
  "$installed" --help >/dev/null
  if readelf -d "$installed" | grep -E 'R(UN)?PATH'; then
    echo "FAIL: $program looks for libraries where it was built" && exit 1
  fi
done
"$work/moved/bin/moe-extract" deploy/demo --domain en -o "$work/en" | grep '^identical: '
echo "installed programs run from another prefix"
