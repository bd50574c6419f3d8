#!/usr/bin/env bash
# Grows the domain `fr` on deploy/demo anew, from nothing but Debian packages.
#
#   grow.sh OUT      in an empty folder: fetches packages into ./debs, unpacks them into ./x, writes ./corpus, then OUT
#
# Environment: PYTHON, a Python with what `client/python[train]` needs (python3); MOE_EXTRACT (from the PATH).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}

[ $# -eq 1 ] || { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit 2; }
[ -d corpus ] || "$python" -B "$here/corpus.py" corpus
PYTHONPATH=$root/client/python "$python" -B -m scion.grow "$root/deploy/demo" --name fr \
  --text corpus/train --held-out corpus/calibration --init-from best --steps 240 --evaluations 12 \
  --held-out-windows 48 --threads 1 --trunk copy ${MOE_EXTRACT:+--moe-extract "$MOE_EXTRACT"} -o "$1"
