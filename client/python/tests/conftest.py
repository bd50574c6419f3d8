"""Models: the demo, cuts of it, and tiny random ones of every kind."""

import pathlib

import pytest

from engine import DEMO, run

TINY = {
    # The domains have 3 experts and 2.
    "unequal": [],
    "k2": ["--experts-per-tok", "2", "--untied", "--f32"],
    "k3_weighted": ["--experts-per-tok", "3", "--route-weights", "--domains", "alpha:4", "beta:3", "--heads", "4",
                    "--kv-heads", "2"],
    # Every other layer, the first one too; one expert in a domain; names that classes use for themselves.
    "names": ["--sparse-layers", "0", "2", "--domains", "keys:1", "to:2", "type:3", "train:2", "a-b_c:5"],
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """name -> directory."""
    work = tmp_path_factory.mktemp("models")
    made = {"demo": DEMO, "slice": work / "slice"}
    run("moe-extract", "slice", DEMO, "--domain", "python,zh", "-o", made["slice"])
    for name, options in TINY.items():
        made[name] = work / name
        run("make_tiny_model", made[name], "scion", *options)
    return made
