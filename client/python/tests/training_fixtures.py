"""Fixtures of the training tests: a tiny model, a text, and `grow` as it is called."""

import pathlib
from collections.abc import Callable

import pytest

import tiny_model
from scion import distill, grow

Program = Callable[..., int]
QUICK = (
    "--steps",
    "20",
    "--evaluations",
    "4",
    "--batch",
    "4",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--precision",
    "fp32",
    "--held-out-windows",
    "8",
)


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    """Domains aa with 3 experts, bb with 2."""
    return tiny_model.make(tmp_path / "model", {"aa": 3, "bb": 2})


@pytest.fixture
def texts(tmp_path: pathlib.Path) -> dict[str, pathlib.Path]:
    """train: a folder with two files; held_out: a file."""
    folder = tmp_path / "texts"
    (folder / "below").mkdir(parents=True)
    (folder / "one.txt").write_text(tiny_model.text(20000, seed=1))
    (folder / "below" / "two.txt").write_text(tiny_model.text(20000, seed=2))
    held_out = tmp_path / "held-out.txt"
    held_out.write_text(tiny_model.text(4000, seed=3))
    return {"train": folder, "held_out": held_out}


@pytest.fixture
def run_grow(model: pathlib.Path, texts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> Program:
    """grow(*arguments, model=..., name=..., text=..., out=...): its exit code."""

    def run(
        *arguments: str,
        model: pathlib.Path = model,
        name: str = "cc",
        text: pathlib.Path = texts["train"],
        out: pathlib.Path = tmp_path / "out",
    ) -> int:
        return grow.main(
            [
                str(model),
                "--name",
                name,
                "--text",
                str(text),
                "--held-out",
                str(texts["held_out"]),
                "-o",
                str(out),
                *QUICK,
                *arguments,
            ]
        )

    return run


@pytest.fixture
def run_distill(texts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> Program:
    """distill(FOLD, TEACHER, *arguments, out=..., texts=...): its exit code."""
    of_texts = ["--text", str(texts["train"]), "--held-out", str(texts["held_out"])]

    def run(
        fold: pathlib.Path,
        teacher: str,
        *arguments: str,
        out: pathlib.Path = tmp_path / "out",
        texts: list[str] = of_texts,
    ) -> int:
        return distill.main([str(fold), "--teacher", teacher, *texts, "-o", str(out), *QUICK, *arguments])

    return run
