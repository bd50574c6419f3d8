#!/usr/bin/env bash
# Builds the package, installs it and what its tests need into build/python-venv, and runs the tests against the programs in
# build/release/bin (or $SCION_BIN). Arguments go to pytest. The first run downloads 3 GB: PyPI's PyTorch for Linux
# brings its CUDA libraries along.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
venv=$root/build/python-venv
stamp=$venv/requirements.txt

if ! cmp -s "$here/requirements.txt" "$stamp"; then
  echo "client/python/tests: making the Python environment in build/python-venv" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
  cp "$here/requirements.txt" "$stamp"
fi
# From a copy, so that building leaves nothing in the tree.
source=$root/build/python-package
rm -rf "$source"
cp -rL "$root/client/python" "$source"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall "$source"
cd "$here"
exec "$venv/bin/python" -B -m pytest -p no:cacheprovider "$@"
