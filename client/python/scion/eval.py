"""Perplexity of texts under every domain of a model.

    python -m scion.eval deploy/demo --text deploy/demo/eval            # starts a moe-serve for the time
    python -m scion.eval --server http://127.0.0.1:8080 --text a.txt    # asks one that runs
    python -m scion.eval deploy/demo --text eval --engine torch         # PyTorch instead, fp32
    python -m scion.eval deploy/demo --text eval -o figures             # and figures.json, figures.svg

A row per text, whether or not a domain has its name: a folder's NAME.jsonl and NAME.txt, or files. The table goes to
stdout (or JSON, with --json), everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence

from scion.evaluation import matrix as matrices
from scion.evaluation import plot
from scion.evaluation.local_server import LocalServer
from scion.evaluation.scorers import Scorer, ServerScorer, TorchScorer
from scion.evaluation.texts import EvalError, find_texts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scion.eval", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=pathlib.Path, metavar="MODEL",
                        help="a model's directory; not needed with --server")
    parser.add_argument("--text", nargs="+", type=pathlib.Path, required=True, metavar="DIR|FILE",
                        help="texts; *.jsonl holds one document per line, its member 'text'")
    parser.add_argument("--server", metavar="URL", help="a moe-serve that runs: http://HOST:PORT, or HOST:PORT of its gRPC")
    parser.add_argument("--engine", choices=("serve", "torch"), default="serve",
                        help="serve: the C++ engine, the default; torch: the Hugging Face class, fp32")
    parser.add_argument("--window", type=int, default=matrices.WINDOW_TOKENS, metavar="TOKENS",
                        help="tokens in one window (default: %(default)s)")
    parser.add_argument("-o", "--out", metavar="PREFIX", help="writes PREFIX.json and PREFIX.svg, which must not exist")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of the table")
    return parser


@contextlib.contextmanager
def _scorer(arguments: argparse.Namespace) -> Iterator[Scorer]:
    if arguments.engine == "torch":
        yield TorchScorer(arguments.model)
    elif arguments.server:
        with ServerScorer(arguments.server) as scorer:
            yield scorer
    else:
        with LocalServer(arguments.model) as server, ServerScorer(server.url) as scorer:
            yield scorer


def _write_new(path: pathlib.Path, text: str) -> None:
    """As a whole or not at all, and never over anything."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        os.chmod(file.fileno(), 0o644)
        os.link(file.name, path)


def _measure(arguments: argparse.Namespace) -> matrices.Matrix:
    with _scorer(arguments) as scorer:
        return matrices.measure(scorer, find_texts(arguments.text, scorer.domains), arguments.window,
                                lambda text, domain: print(f"scoring {text} under {domain}", file=sys.stderr))


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.engine == "torch" and arguments.server:
        parser.error("--engine torch asks no --server")
    if (arguments.model is None) == (arguments.server is None):
        parser.error("either MODEL or --server, please")
    if arguments.window < 2:
        parser.error("--window: a window holds at least 2 tokens")
    outputs = {suffix: pathlib.Path(f"{arguments.out}.{suffix}") for suffix in ("json", "svg") if arguments.out}
    try:
        for path in outputs.values():
            if os.path.lexists(path):
                raise EvalError(f"{path}: exists")
            if not path.parent.is_dir():
                raise EvalError(f"{path.parent}: no such folder")
        matrix = _measure(arguments)
        as_json = json.dumps(matrix.to_json(), indent=1, ensure_ascii=False) + "\n"
        for suffix, path in outputs.items():
            _write_new(path, as_json if suffix == "json" else plot.svg(matrix))
    except (EvalError, OSError) as error:
        print(f"scion.eval: {error}", file=sys.stderr)
        return 1
    sys.stdout.write(as_json if arguments.json else matrix.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
