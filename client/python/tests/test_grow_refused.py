"""What can't be trained is said in one line, and nothing is left behind; beside it, a control that trains."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import tiny_model
from training_fixtures import Program, model, run_grow, texts  # noqa: F401


def left_over(tmp_path: pathlib.Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".") or path.name == "out")


@pytest.fixture
def said(run_grow: Program, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    """The message of a run that fails, having left nothing."""

    def run(*arguments: str, **named: object) -> str:
        assert run_grow(*arguments, **named) == 1
        assert left_over(tmp_path) == []
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("grow: ") and "Traceback" not in message
        return message

    return run


def test_the_control_trains(run_grow: Program, tmp_path: pathlib.Path) -> None:
    assert run_grow() == 0
    assert left_over(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"the " * 30, "tokens to train on"),
        (b"\x7fELF\0\0" + b"the " * 3000, "byte 4 is NUL"),
        (b"the \xe9 " * 3000, "not UTF-8 at byte 4"),
    ],
)
def test_bad_texts(said, tmp_path: pathlib.Path, content: bytes, message: str) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(content)
    assert message in said(text=bad)


def test_a_text_that_is_not_there(said, tmp_path: pathlib.Path) -> None:
    assert "no such file or folder" in said(text=tmp_path / "nowhere")
    (tmp_path / "void").mkdir()
    assert "no files" in said(text=tmp_path / "void")


def test_a_line_of_100_megabytes_trains(run_grow: Program, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "long.txt"
    with path.open("w") as file:
        for _ in range(100):
            file.write((tiny_model.text(20000).replace("\n", " ")[:10000]) * 100)
    assert path.stat().st_size == 10**8
    assert run_grow("--max-tokens", "300000", text=path) == 0
    notes = json.loads((tmp_path / "out/training/record.json").read_text())["text"]
    assert not notes["all_of_it"] and 300000 <= notes["train_tokens"] < 500000


@pytest.mark.parametrize(
    "name, message",
    [
        ("aa", "has this domain"),
        ("Cc", "lower-case"),
        ("auto", "reserved"),
        ("all", "reserved"),
        ("default", "reserved"),
        ("", "lower-case"),
        ("a" * 64, "lower-case"),
        ("../x", "lower-case"),
        ("cc\n", "lower-case"),
    ],
)
def test_bad_names(said, name: str, message: str) -> None:
    assert message in said(name=name)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--init-from", "zz"], "--init-from zz"),
        (["--experts", "0"], "--experts 0"),
        (["--experts", "1000"], "--experts 1000"),
        (["--window", "33"], "--window 33"),
        (["--device", "tpu7"], "--device tpu7"),
        (["--moe-extract", "nowhere/moe-extract"], "no such program"),
    ],
)
def test_bad_arguments(said, arguments: list[str], message: str) -> None:
    assert message in said(*arguments)


def test_a_place_that_is_taken(run_grow: Program, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    assert run_grow() == 1 and "exists" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
    for place in (tmp_path / "out" / "..", tmp_path / "out" / "."):
        assert run_grow(out=place) == 1 and "exists" in capsys.readouterr().err
    assert run_grow(out=tmp_path / "nowhere" / "out") == 1 and "no such folder" in capsys.readouterr().err


def test_models_that_have_no_domains_or_are_damaged(said, model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = json.loads((model / "config.json").read_text())
    for change, message in (
        ({"model_type": "llama"}, "not a Scion model"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_hidden_layers": 4}, "lacks"),
        ({"hidden_size": 64}, "asks for"),
        ({"num_attention_heads": 4}, "asks for"),
    ):
        (model / "config.json").write_text(json.dumps(config | change))
        assert message in said()
    (model / "config.json").write_text("{")
    assert "not JSON" in said()
    (model / "config.json").unlink()
    assert "no such file" in said()
    (model / "config.json").write_text(json.dumps(config))
    (model / "tokenizer.json").rename(model / "t")
    assert "tokenizer.json" in said()
    (model / "t").rename(model / "tokenizer.json")
    (model / "domains/aa.safetensors").write_bytes(b"no")
    assert "aa.safetensors: not a safetensors file" in said()


def test_no_permission(model: pathlib.Path, texts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    """As a user who may not write there; what a superuser may do says nothing."""
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o555)
    done = without_override(
        "scion.grow",
        str(model),
        "--name",
        "cc",
        "--text",
        str(texts["train"]),
        "--steps",
        "2",
        "-o",
        str(place / "out"),
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.strip().splitlines()[-1].endswith("Permission denied") and "Traceback" not in done.stderr


def without_override(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a module without the right to pass over permissions."""
    command = [sys.executable, "-B", "-m", module, *arguments]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", *command]
    return subprocess.run(command, capture_output=True, text=True)
