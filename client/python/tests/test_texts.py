"""Texts become ids in pieces, whatever their lines are like; what is no text is refused by its place."""

import json
import pathlib
import tracemalloc

import numpy as np
import pytest

import tiny_model
from scion.training import texts
from scion.training.errors import TrainingError
from scion.training.texts import IdFile, encode_text, files_of, open_ids, pieces_of, token_counts

END = 259


def bytes_of(text: str) -> list[int]:
    """An encoder that needs no tokenizer."""
    return list(text.encode())


def encode(
    path: pathlib.Path, out: pathlib.Path, begin: list[int] = [], hold_out: bool = False, max_tokens: int = 10**9
) -> tuple[np.ndarray, np.ndarray, bool]:
    train, held = IdFile(out / "train", tiny_model.VOCAB), IdFile(out / "held", tiny_model.VOCAB)
    whole = encode_text(path, bytes_of, begin, END, train, held if hold_out else None, max_tokens, lambda tokens: None)
    train.close()
    held.close()
    return open_ids(out / "train"), open_ids(out / "held"), whole


def test_every_byte_of_every_file_comes_once_in_order(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "t"
    (folder / "b").mkdir(parents=True)
    (folder / ".git").mkdir()
    contents = {
        "a.txt": "eins\nzwei",
        "b/c.txt": "drei é 如果\n\n",
        "d.jsonl": json.dumps({"text": "vier"})
        + "\n\n"
        + json.dumps({"text": ""})
        + "\n"
        + json.dumps({"text": "fünf"})
        + "\n",
        ".hidden": "no",
        ".git/x": "no",
        "empty.txt": "",
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    ids, _, whole = encode(folder, tmp_path, begin=[258])
    documents = [
        bytes(part).decode()
        for part in [list(d) for d in np.split(ids, np.flatnonzero(ids == END) + 1)][:-1]
        for part in [part_of(part)]
    ]
    assert documents == ["eins\nzwei", "vier", "fünf", "drei é 如果\n\n"]
    assert whole and ids[-1] == END and (ids == 258).sum() == 4


def part_of(document: list[int]) -> list[int]:
    """Without what is put before and after."""
    assert document[0] == 258 and document[-1] == END
    return [int(token) for token in document[1:-1]]


@pytest.mark.parametrize("content", ["x" * 300000, "é" * 150001, "ab " * 100000, "line\n" * 60000 + "如" * 70000])
def test_pieces_are_small_and_cut_no_character(tmp_path: pathlib.Path, content: str) -> None:
    path = tmp_path / "a"
    path.write_text(content, encoding="utf-8")
    pieces = list(pieces_of(path))
    assert pieces[-1] is None and "".join(piece for piece in pieces if piece) == content
    assert max(len(piece.encode()) for piece in pieces if piece) <= 2 * texts.PIECE_BYTES
    ends = {piece[-1] for piece in pieces[:-2] if piece}
    assert ends <= ({"\n"} if content.startswith("line") else {" "} if " " in content else set(content)) | {"如"}


def test_a_line_of_100_megabytes_needs_little_memory(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "long"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(b"a" * 10**6)
    tracemalloc.start()
    length = sum(len(piece) for piece in pieces_of(path) if piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert length == 10**8 and peak < 2**20


@pytest.mark.parametrize(
    "content, place",
    [
        (b"good\n" * 20000 + b"\0more", "byte 100000 is NUL"),
        (b"good\n" * 20000 + b"\xff\xfemore", "byte 100000"),
        (b"caf\xe9 au lait", "byte 3"),
        (b"x" * 65535 + "é".encode() + b"\xff", "byte 65537"),
        ("如果".encode()[:-1], "ends within a character"),
    ],
)
def test_what_is_no_text_is_refused_by_its_place(tmp_path: pathlib.Path, content: bytes, place: str) -> None:
    path = tmp_path / "b"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=place):
        list(pieces_of(path))


@pytest.mark.parametrize("line", ['{"txt": "a"}', "[1]", '{"text": 3}', "{", "[" * 100000])
def test_a_line_that_is_no_document_is_refused_by_its_number(tmp_path: pathlib.Path, line: str) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(TrainingError, match="line 2"):
        list(pieces_of(path))


def test_a_line_of_json_has_a_limit(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text(json.dumps({"text": "x" * 1000}) + "\n")
    assert list(pieces_of(path)) == ["x" * 1000, None]
    monkeypatch.setattr(texts, "MAX_JSON_LINE_BYTES", 1000)
    with pytest.raises(TrainingError, match="line 1 is longer"):
        list(pieces_of(path))


def test_no_text_is_said(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TrainingError, match="no such"):
        files_of(tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="no files"):
        files_of(tmp_path)


def test_one_piece_in_twenty_is_held_out_and_in_no_other_place(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    for number in range(45):
        (folder / f"{number:03}").write_text(f"document {number}.")
    train, held, _ = encode(folder, tmp_path, hold_out=True)
    kept, apart = (bytes(int(token) for token in ids if token != END).decode().split(".")[:-1] for ids in (train, held))
    assert apart == ["document 10", "document 30"]
    assert sorted(kept + apart) == sorted(f"document {number}" for number in range(45))


def test_what_is_beyond_the_limit_is_not_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    path.write_text("ab " * 100000)
    ids, _, whole = encode(path, tmp_path, max_tokens=70000)
    assert not whole and 70000 <= len(ids) <= 70000 + 2 * texts.PIECE_BYTES


def test_a_token_that_the_model_has_not_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TrainingError, match="token 260"):
        IdFile(tmp_path / "ids", 260).append([3, 260])


def test_counts(tmp_path: pathlib.Path) -> None:
    assert token_counts(np.array([1, 3, 3], np.uint32), 5).tolist() == [0, 1, 0, 2, 0]
    assert token_counts(np.zeros(0, np.uint32), 2).tolist() == [0, 0]
