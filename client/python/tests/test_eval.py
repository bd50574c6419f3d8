"""scion.eval: the protocol's windows, the figures of other programs, and what is refused."""

from __future__ import annotations

import json
import math
import pathlib
import subprocess
import xml.etree.ElementTree
from collections.abc import Sequence

import pytest

from engine import BIN, DEMO
from scion import eval as command
from scion.evaluation import plot
from scion.evaluation.matrix import Matrix, Row, measure, windows_of
from scion.evaluation.scorers import TorchScorer
from scion.evaluation.texts import EvalError, Text, find_texts, read_documents

COMMITTED = json.loads((DEMO / "eval/matrix.json").read_text())


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package does not find the build by itself."""
    monkeypatch.setenv("SCION_BIN", str(BIN))


class Bytes:
    """Every character of a text is a token; "fair" finds each of 8 equally likely, "sure" always knows the next."""

    description, domains = "made up", ["fair", "sure"]

    def __init__(self) -> None:
        self.windows: list[list[int]] = []

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        return ([1000] if add_special else []) + [ord(c) for c in text]

    def log_likelihood(self, domain: str, windows: Sequence[Sequence[int]]) -> float:
        self.windows = [list(window) for window in windows]
        scored = sum(len(window) - 1 for window in windows)
        return 0.0 if domain == "sure" else -math.log(8) * scored


class NoPrefix(Bytes):
    def tokenize(self, text: str, add_special: bool) -> list[int]:
        return super().tokenize(text, False)


def write(folder: pathlib.Path, **texts: str) -> list[pathlib.Path]:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return [folder]


def test_windows_begin_with_what_the_tokenizer_puts_before_a_text() -> None:
    assert windows_of([1, 2, 3, 4, 5], [], 2) == [[1, 2], [3, 4]]  # a window of one token scores nothing
    assert windows_of([1, 2, 3, 4, 5], [9], 3) == [[9, 1, 2], [9, 3, 4], [9, 5]]
    assert windows_of([], [9], 3) == windows_of([7], [], 3) == []
    with pytest.raises(EvalError, match="fill a window of 2"):
        windows_of([1], [8, 9], 2)


def test_a_matrix_has_a_row_for_each_text_those_of_domains_first(tmp_path: pathlib.Path) -> None:
    (tmp_path / "sure.jsonl").write_text('{"text": "abc"}\n\n{"text": "", "more": 1}\n{"text": "defgh"}\n')
    (tmp_path / "other.txt").write_text("xy")
    (tmp_path / "matrix.json").write_text("no text")
    scorer = Bytes()
    matrix = measure(scorer, find_texts([tmp_path], scorer.domains), window_tokens=4)
    assert [(row.text, row.scored_tokens) for row in matrix.rows] == [("sure", 8), ("other", 2)]
    assert scorer.windows == [[1000, 120, 121]]
    for row in matrix.rows:
        assert row.perplexity == {"fair": pytest.approx(8), "sure": 1}
    sure, other = matrix.rows
    assert (sure.own, sure.best_other) == (1, pytest.approx(8))
    assert (other.own, other.best_other) == (None, 1)
    assert "made up" in matrix.table() and "8.000" in matrix.table()


@pytest.mark.parametrize("name, data, why", [
    ("a.txt", b"", "is empty"),
    ("a.txt", b"ab\0", "byte 2 is NUL"),
    ("a.txt", b"ab\xff", "not UTF-8 at byte 2"),
    ("a.jsonl", b'{"text": "x"}\n{"words": "x"}\n', "line 2"),
    ("a.jsonl", b'{"text": 7}\n', "line 1"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1"),
    ("a.jsonl", b"[" * 100_000, "line 1"),
])
def test_damaged_text_is_refused_by_name(tmp_path: pathlib.Path, name: str, data: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(EvalError, match=why) as refused:
        read_documents(tmp_path / name)
    assert name in str(refused.value)
    (tmp_path / name).write_bytes(b'{"text": "fine"}\n')  # the control
    assert read_documents(tmp_path / name)


def test_texts_that_are_not_there_or_twice_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(EvalError, match="no such"):
        find_texts([tmp_path / "none"], [])
    with pytest.raises(EvalError, match="has no text"):
        find_texts([tmp_path], [])
    write(tmp_path, a="x", b="y")
    assert [text.name for text in find_texts([tmp_path / "b.txt", tmp_path / "a.txt"], ["b"])] == ["b", "a"]
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    with pytest.raises(EvalError, match="one name: a"):
        find_texts([tmp_path], [])
    with pytest.raises(EvalError, match="b.txt: no text of two tokens"):
        measure(NoPrefix(), find_texts([tmp_path / "b.txt"], []))


def test_the_server_measures_what_moe_extract_measures(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And PyTorch, within a percent: the committed figures are of fp32, the engine's of bf16."""
    out = tmp_path / "figures"
    assert command.main([str(DEMO), "--text", str(DEMO / "eval"), "-o", str(out), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert figures["engine"].startswith("moe-serve")
    report = subprocess.run([BIN / "moe-extract", "report", DEMO, "--text", DEMO / "eval", "-o", tmp_path / "a.html",
                             "--json"], check=True, capture_output=True, text=True)
    expected = json.loads(report.stdout)["matrix"]["rows"]
    assert [row["text"] for row in figures["rows"]] == [row["text"] for row in expected]
    for row, other in zip(figures["rows"], expected):
        assert row["scored_tokens"] == other["scored_tokens"] == COMMITTED[row["text"]]["scored_tokens"]
        assert row["perplexity"] == pytest.approx(other["perplexity"], rel=1e-5)
        assert row["perplexity"] == pytest.approx(COMMITTED[row["text"]]["perplexity"], rel=0.01)
    # What it writes is what report takes for a matrix, and the plot has the figures.
    subprocess.run([BIN / "moe-extract", "report", DEMO, "--matrix", tmp_path / "figures.json", "-o", tmp_path / "b.html"],
                   check=True, capture_output=True)
    assert "read, not measured" in (tmp_path / "b.html").read_text()
    shown = texts_of((tmp_path / "figures.svg").read_text())
    assert {f"{value:.2f}" if value < 100 else f"{value:.1f}" for row in figures["rows"]
            for value in row["perplexity"].values()} <= shown


def test_pytorch_measures_the_committed_figures() -> None:
    scorer = TorchScorer(DEMO)
    row, = measure(scorer, [Text("zh", DEMO / "eval/zh.jsonl")]).rows
    assert row.scored_tokens == COMMITTED["zh"]["scored_tokens"]
    assert row.perplexity == pytest.approx(COMMITTED["zh"]["perplexity"], rel=1e-4)
    # Special tokens' strings in a text are text, as the server has it.
    assert len(scorer.tokenize("<|endoftext|>", add_special=False)) > 1


def texts_of(svg: str) -> set[str]:
    return {element.text or "" for element in xml.etree.ElementTree.fromstring(svg).iter() if element.tag.endswith("text")}


def test_the_plot_keeps_hostile_names_text() -> None:
    name = "</text><script>alert(1)</script>"
    row = Row(name, 1, {"en": 1e6, "zh": 2.5, "inf": math.inf})
    svg = plot.svg(Matrix(["en", "zh", "inf"], [row], "made up", 256))
    elements = xml.etree.ElementTree.fromstring(svg).iter()
    assert {element.tag.split("}")[1] for element in elements} <= {"svg", "style", "title", "desc", "rect", "text"}
    assert {"2.50", "1.0e+06", "inf"} <= texts_of(svg)
    assert Matrix(["en", "zh", "inf"], [row], "made up", 256).to_json()["rows"][0]["perplexity"]["inf"] is None


def test_the_command_line_says_what_is_wrong(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, en="It was the best of times", long="It was the best of times " * 200)
    (tmp_path / "taken.svg").write_text("mine")
    text = ["--text", str(tmp_path / "en.txt")]
    for arguments, why in [
        ([str(DEMO), *text, "-o", str(tmp_path / "taken")], "taken.svg: exists"),
        ([str(DEMO), *text, "-o", str(tmp_path / "no/where")], "no such folder"),
        ([str(DEMO), "--text", str(tmp_path / "none.txt")], "none.txt: no such file"),
        ([str(tmp_path), *text], "ended without serving"),
        ([str(tmp_path), *text, "--engine", "torch"], "no config.json"),
        (["--server", "http://127.0.0.1:1", *text], "UNAVAILABLE"),
        (["--server", "ftp://127.0.0.1", *text], "no URL"),
        ([str(DEMO), "--text", str(tmp_path / "long.txt"), "--window", "1000"], "the server can't score"),
    ]:
        assert command.main(arguments) == 1, arguments
        captured = capsys.readouterr()
        assert why in captured.err and captured.out == "", (arguments, captured.err)
    assert (tmp_path / "taken.svg").read_text() == "mine" and not (tmp_path / "taken.json").exists()
    for arguments in ([], [str(DEMO)], text, [str(DEMO), *text, "--server", "http://127.0.0.1:1"],
                      [str(DEMO), *text, "--window", "1"], ["--server", "x:1", "--engine", "torch", *text]):
        with pytest.raises(SystemExit) as usage:
            command.main([str(argument) for argument in arguments])
        assert usage.value.code == 2
