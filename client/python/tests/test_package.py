"""What is installed: modules that need only what they use, types, and the files that others copy."""

import pathlib
import re
import subprocess
import sys

import pytest

import scion
from engine import ROOT

INSTALLED = pathlib.Path(scion.__file__).parent


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-B", "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("statement, absent", [
    ("import scion", ["torch", "transformers", "grpc", "numpy"]),
    ("import scion.client; scion.client.Client", ["torch", "transformers", "grpc", "numpy"]),
    ("from scion.client import GrpcClient", ["torch", "transformers", "numpy"]),
])
def test_a_module_needs_only_what_it_uses(statement: str, absent: list[str]) -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"  # importing one of them fails
    python(blocked + statement)
    with pytest.raises(subprocess.CalledProcessError):
        python(blocked + f"import {absent[0]}")


def test_the_package_has_types_and_stubs() -> None:
    assert (INSTALLED / "py.typed").is_file()
    assert (INSTALLED / "v1/inference_pb2.pyi").is_file()
    assert (INSTALLED / "v1/inference.proto").read_text() == (ROOT / "proto/scion/v1/inference.proto").read_text()


def test_its_version_is_the_projects() -> None:
    project = re.search(r"project\(scion VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())
    assert project is not None and project[1] == scion.__version__


@pytest.mark.parametrize("program", ["grow", "distill", "eval"])
def test_help_has_an_example(program: str) -> None:
    called = f"python -m scion.{program}"
    said = subprocess.run([sys.executable, "-B", *called.split()[1:], "--help"], check=True, capture_output=True, text=True)
    assert any(line.startswith(f"    {called} ") for line in said.stdout.splitlines())
