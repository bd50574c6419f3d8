"""A run that is killed goes on from its checkpoint, and is from there on the run that was not killed, bit for bit."""

import json
import pathlib
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from scion.training import checkpoint
from training_fixtures import QUICK, Program, model, run_grow, texts  # noqa: F401

LONG = ("--steps", "60", "--evaluations", "12", "--checkpoint-seconds", "0.05")


def start(model: pathlib.Path, texts: dict[str, pathlib.Path], out: pathlib.Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-B",
            "-m",
            "scion.grow",
            str(model),
            "--name",
            "cc",
            "--text",
            str(texts["train"]),
            "--held-out",
            str(texts["held_out"]),
            "-o",
            str(out),
            *QUICK,
            *LONG,
            *more,
        ],
        stderr=subprocess.PIPE,
        text=True,
    )


def curve_of(out: pathlib.Path) -> list[tuple[str, ...]]:
    """Steps, tokens and losses; not the seconds."""
    rows = [row.split(",") for row in (out / "training/loss.csv").read_text().splitlines()[1:]]
    return [(row[0], row[1], row[3], row[4]) for row in rows]


def kill_after(process: subprocess.Popen[str], said: str, number: int) -> str:
    """Sends a signal when a line that begins so has come; returns all that was said."""
    lines = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if said in line:
            process.send_signal(number)
            break
    lines += process.stderr.readlines()
    process.wait()
    return "".join(lines)


@pytest.fixture
def whole(
    model: pathlib.Path, texts: dict[str, pathlib.Path], run_grow: Program, tmp_path: pathlib.Path
) -> pathlib.Path:
    """A run that nobody stopped."""
    assert run_grow(*LONG, out=tmp_path / "whole") == 0
    return tmp_path / "whole"


def expect_the_same(out: pathlib.Path, whole: pathlib.Path) -> None:
    assert curve_of(out) == curve_of(whole) and len(curve_of(out)) == 13
    ours, theirs = (load_file(path / "domains/cc.safetensors") for path in (out, whole))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_killed_twice_the_curve_is_that_of_a_run_that_was_not(
    whole: pathlib.Path, model: pathlib.Path, texts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    out, folder = tmp_path / "killed", tmp_path / ".killed.scion-train"
    for more, said in (([], "step 20:"), (["--resume"], "step 40:")):
        process = start(model, texts, out, *more)
        kill_after(process, said, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not out.exists() and (folder / checkpoint.NAME).is_file() and (folder / "curve.csv").is_file()
    process = start(model, texts, out, "--resume")
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait() == 0, said
    assert "goes on from step" in said
    expect_the_same(out, whole)
    assert not folder.exists()


def test_a_signal_writes_a_checkpoint_at_once(
    whole: pathlib.Path, model: pathlib.Path, texts: dict[str, pathlib.Path], run_grow: Program, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "stopped"
    process = start(model, texts, out, "--checkpoint-seconds", "1000")
    said = kill_after(process, "step 10:", signal.SIGTERM)
    assert process.returncode == 130 and "--resume goes on from there" in said and "Traceback" not in said
    assert run_grow(*LONG, "--resume", out=out) == 0
    expect_the_same(out, whole)


def stopped(model: pathlib.Path, texts: dict[str, pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """The folder of a run that was stopped."""
    kill_after(start(model, texts, out), "step 5:", signal.SIGINT)
    return out.with_name(f".{out.name}.scion-train")


def test_an_unfinished_run_is_neither_overwritten_nor_mixed_up(
    model: pathlib.Path,
    texts: dict[str, pathlib.Path],
    run_grow: Program,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = stopped(model, texts, tmp_path / "out")
    assert run_grow(*LONG) == 1 and "--resume goes on with it" in capsys.readouterr().err
    for other in (["--seed", "2"], ["--learning-rate", "0.5"], ["--init-from", "bb"], ["--steps", "61"]):
        assert run_grow(*LONG, "--resume", *other) == 1
        assert "a run with another" in capsys.readouterr().err
        assert (folder / checkpoint.NAME).is_file()
    texts["held_out"].write_text("other text " * 500)
    assert run_grow(*LONG, "--resume") == 0  # the text was made into tokens before
    assert json.loads((tmp_path / "out/training/record.json").read_text())["result"]["steps"] == 60


def test_a_damaged_checkpoint_is_said(
    model: pathlib.Path,
    texts: dict[str, pathlib.Path],
    run_grow: Program,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = stopped(model, texts, tmp_path / "out")
    path = folder / checkpoint.NAME
    sound = path.read_bytes()
    for damaged in (b"", sound[: len(sound) // 2], b"x" * 100):
        path.write_bytes(damaged)
        assert run_grow(*LONG, "--resume") == 1
        assert "not a checkpoint, or damaged" in capsys.readouterr().err
    path.write_bytes(sound)
    assert run_grow(*LONG, "--resume") == 0


def test_there_is_nothing_to_resume(
    run_grow: Program, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_grow("--resume") == 1 and "no checkpoint to resume from" in capsys.readouterr().err
    assert list(tmp_path.glob(".*")) == []


def test_two_runs_for_one_place(
    model: pathlib.Path,
    texts: dict[str, pathlib.Path],
    run_grow: Program,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    process = start(model, texts, tmp_path / "out", "--steps", "100000")
    assert process.stderr is not None
    while "step 0:" not in process.stderr.readline():
        pass
    assert run_grow(*LONG) == 1 and "another process works here" in capsys.readouterr().err
    process.kill()
    process.wait()


def test_a_checkpoint_of_a_failed_write_is_the_one_before(tmp_path: pathlib.Path) -> None:
    checkpoint.save(tmp_path, {"fingerprint": {"a": 1}, "value": 1})

    class Unwritable:
        def __reduce__(self) -> tuple:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="the one before it is whole"):
        checkpoint.save(tmp_path, {"fingerprint": {"a": 1}, "value": Unwritable()})
    assert checkpoint.load(tmp_path, {"a": 1})["value"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]


def test_a_full_disk(model: pathlib.Path, texts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    """A tmpfs of several sizes: full while texts, checkpoints or the model are written, until it is large enough."""
    disk = tmp_path / "small"
    disk.mkdir()
    ended = []
    for kib in (16, 160, 400, 1000, 8000):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "scion", disk], check=True)
        try:
            process = start(model, texts, disk / "out", "--steps", "4", "--evaluations", "1", "--trunk", "copy")
            assert process.stderr is not None
            said = process.stderr.read()
            ended.append(process.wait())
            assert "Traceback" not in said, said
            if ended[-1]:
                assert ended[-1] == 1 and "no space left" in said.splitlines()[-1].lower(), said
                assert not (disk / "out").exists()
                assert all(
                    path.name == ".out.scion-train" and (path / checkpoint.NAME).is_file() for path in disk.iterdir()
                )
        finally:
            subprocess.run(["umount", disk], check=True)
    assert ended[-1] == 0 and ended.count(1) >= 3, ended
