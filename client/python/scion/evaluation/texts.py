"""Files as documents: `*.jsonl` holds one per line, its member "text"; any other file is one document."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

MAX_TEXT_BYTES = 256 << 20
MAX_TEXTS = 1000


class EvalError(Exception):
    """What was asked for can't be measured; the message says why, and names the file."""


@dataclass(frozen=True)
class Text:
    """A row of the matrix."""

    name: str  # of the file, without extension
    path: pathlib.Path


def find_texts(paths: Sequence[pathlib.Path], domains: Sequence[str]) -> list[Text]:
    """The files, and of folders those called *.jsonl and *.txt. Texts with the name of a domain come first, in the order
    of `domains`, then the others by name. EvalError: nothing there, or a name twice."""
    files: list[pathlib.Path] = []
    for path in paths:
        if path.is_dir():
            found = [file for file in path.iterdir() if file.suffix in (".jsonl", ".txt")]
            if not found:
                raise EvalError(f"{path}: has no text, no NAME.jsonl or NAME.txt")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise EvalError(f"{path}: no such file or folder")
    if len(files) > MAX_TEXTS:
        raise EvalError(f"{len(files)} texts; at most {MAX_TEXTS}")
    texts = sorted((Text(file.stem, file) for file in files), key=lambda text: text.name)
    for one, other in zip(texts, texts[1:]):
        if one.name == other.name:
            raise EvalError(f"{one.path} and {other.path} have one name: {one.name}")
    order = {name: i for i, name in enumerate(domains)}
    return sorted(texts, key=lambda text: order.get(text.name, len(order)))


def read_documents(path: pathlib.Path) -> list[str]:
    """EvalError, naming the file: it can't be read, is too large, empty, binary, or no such JSON."""
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise EvalError(f"{path}: larger than {MAX_TEXT_BYTES >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise EvalError(f"{path}: {error.strerror}") from None
    if not data:
        raise EvalError(f"{path}: is empty")
    if (nul := data.find(b"\0")) >= 0:
        raise EvalError(f"{path}: byte {nul} is NUL: not text")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise EvalError(f"{path}: not UTF-8 at byte {error.start}") from None
    if path.suffix != ".jsonl":
        return [text]
    return [_document(path, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _document(path: pathlib.Path, number: int, line: str) -> str:
    try:
        document = json.loads(line)["text"]
        if not isinstance(document, str):
            raise TypeError
        document.encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        raise EvalError(f'{path}: line {number} is no JSON object with a text as its member "text"') from None
    return document
