#!/usr/bin/env bash
# Runs the references again (PyTorch, Transformers) and compares with the committed golden files: says how far apart they
# are, and ends with 1 if any is further than stated. The first run downloads about 3.5 GB into build/oracle-venv.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$root/build/oracle-venv
stamp=$venv/requirements.txt

if ! cmp -s "$here/requirements.txt" "$stamp"; then
  echo "tests/oracle: making the Python environment in build/oracle-venv" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
  cp "$here/requirements.txt" "$stamp"
fi

failed=0
# again NAME PROGRAM...
again() {
  echo "== $1"
  if ! "$venv/bin/python" -B "${@:2}"; then
    echo "$1: the golden files are not reproduced" >&2
    failed=1
  fi
}
again tokenizers "$root/tests/golden/make_tokenizer_golden.py" --check
again gguf-tokenizers "$root/tests/golden/make_gguf_golden.py" --check
again models "$here/golden_models.py"
again experts "$here/golden_experts.py"
again blocks "$here/golden_blocks.py"
again gguf "$here/golden_gguf.py"
again exports "$here/exports.py"
again logits "$here/golden_logits.py"
again perplexity "$here/perplexity.py"
again fold "$here/fold_transformers.py"
exit "$failed"
