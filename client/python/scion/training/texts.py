"""Text files to files of token ids, in pieces: neither a text nor a line of it has to fit in memory.

A text is a file, or a folder with files in it and below it (in order of their paths, hidden ones left out). `*.jsonl`
holds a document per line, its member "text"; any other file is one document. Each document is followed by the model's
end-of-text token. Special tokens' strings in a text are text.
"""

import codecs
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import numpy as np

from scion.training.errors import TrainingError

PIECE_BYTES = 64 << 10  # what the tokenizer gets at once: cut after a line, else after a space, else anywhere
MAX_JSON_LINE_BYTES = 16 << 20
HELD_OUT_ONE_IN = 20  # pieces, where no other text is named to be held out
ID_TYPE = np.dtype("<u4")


class Encoder(Protocol):
    """Gives the ids of a text, special tokens' strings being ordinary text."""

    def __call__(self, text: str) -> list[int]: ...


def files_of(text: pathlib.Path) -> list[pathlib.Path]:
    """The files that a text consists of. TrainingError if there is none."""
    if text.is_file():
        return [text]
    if not text.is_dir():
        raise TrainingError(f"{text}: no such file or folder")
    found = []

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(text, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            pathlib.Path(folder, name)
            for name in sorted(names)
            if not name.startswith(".") and pathlib.Path(folder, name).is_file()
        ]
    if not found:
        raise TrainingError(f"{text}: no files in this folder")
    return found


def _plain_pieces(path: pathlib.Path, file: BinaryIO) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest, offset = "", 0
    while block := file.read(PIECE_BYTES):
        if (nul := block.find(b"\0")) >= 0:
            raise TrainingError(f"{path}: byte {offset + nul} is NUL: a binary file, no text")
        try:
            rest += decoder.decode(block)
        except UnicodeDecodeError as error:
            at = offset + error.start - (len(error.object) - len(block))
            raise TrainingError(f"{path}: not UTF-8 at byte {at}: a binary file, or a text to be converted") from None
        offset += len(block)
        if len(block) < PIECE_BYTES:
            continue  # the last one
        cut = rest.rfind("\n") + 1 or rest.rfind(" ") + 1 or len(rest)
        yield rest[:cut]
        rest = rest[cut:]
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise TrainingError(f"{path}: ends within a character: not UTF-8, or cut off") from None
    yield rest


def _json_documents(path: pathlib.Path, file: BinaryIO) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_JSON_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_JSON_LINE_BYTES:
            raise TrainingError(
                f"{path}: line {number} is longer than {MAX_JSON_LINE_BYTES >> 20} MiB, the most of a line of JSON"
            )
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise TrainingError(f'{path}: line {number} is no JSON object with a member "text"') from None
        if not isinstance(document, str):
            raise TrainingError(f'{path}: line {number}: "text" is not a string')
        yield document.encode("utf-8", "replace").decode()  # lone surrogates are no text


def pieces_of(path: pathlib.Path) -> Iterator[str | None]:
    """The pieces of a file's documents, and None after each document. TrainingError: binary, not UTF-8, or no JSON."""
    with path.open("rb") as file:
        if path.suffix == ".jsonl":
            for document in _json_documents(path, file):
                yield from (document[begin : begin + PIECE_BYTES] for begin in range(0, len(document), PIECE_BYTES))
                yield None
        else:
            yield from _plain_pieces(path, file)
            yield None


class IdFile:
    """A file of token ids, written once from front to back; memory holds one piece."""

    def __init__(self, path: pathlib.Path, vocab_size: int) -> None:
        self._file = path.open("wb")
        self._vocab_size = vocab_size
        self.tokens = 0

    def append(self, ids: list[int]) -> None:
        if not ids:
            return
        if max(ids) >= self._vocab_size:
            raise TrainingError(f"the tokenizer gives token {max(ids)}, but the model has {self._vocab_size}")
        self._file.write(np.asarray(ids, ID_TYPE).tobytes())
        self.tokens += len(ids)

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def encode_text(
    text: pathlib.Path,
    encode: Encoder,
    begin_ids: list[int],
    end_id: int | None,
    train: IdFile,
    held_out: IdFile | None,
    max_tokens: int,
    report: Callable[[int], None],
) -> bool:
    """Encodes a text into `train`, but for one piece in HELD_OUT_ONE_IN into `held_out`, if given.

    begin_ids, end_id: what is put before and after each document. A piece that is held out
    is one of its own. Special tokens are never looked for. Stops after `max_tokens`; returns whether all of the text
    was read. report: is given the tokens so far, now and then.
    """
    count = 0
    ending = [] if end_id is None else [end_id]
    for path in files_of(text):
        target: IdFile | None = None  # where the document's last piece went
        for piece in pieces_of(path):
            if not piece:
                if piece is None and target is not None:
                    target.append(ending)
                    target = None
                continue
            is_held_out = held_out is not None and count % HELD_OUT_ONE_IN == HELD_OUT_ONE_IN // 2
            wanted = held_out if is_held_out and held_out is not None else train
            if target is not wanted:
                if target is not None:
                    target.append(ending)
                wanted.append(begin_ids)
            wanted.append(encode(piece))
            target = wanted
            count += 1
            total = train.tokens + (held_out.tokens if held_out is not None else 0)
            report(total)
            if total >= max_tokens:
                return False
    return True


def open_ids(path: pathlib.Path) -> np.ndarray:
    """The ids of a closed IdFile, [tokens] u32, mapped and not read. An empty file gives an empty array."""
    if path.stat().st_size == 0:
        return np.zeros(0, ID_TYPE)
    return np.memmap(path, ID_TYPE, mode="r")


def token_counts(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """[vocab_size] i64: how often each token comes."""
    counts = np.zeros(vocab_size, np.int64)
    for begin in range(0, len(ids), 1 << 20):
        counts += np.bincount(ids[begin : begin + (1 << 20)].astype(np.int64), minlength=vocab_size)
    return counts
