"""The committed fifth domain: it grafts onto the demo, changes no other domain, and knows its language."""

import json
import pathlib

import numpy as np
import pytest

import engine
from moe_serve import Server

FR = engine.ROOT / "deploy/demo-fr"
AT_MOST = 0.7  # of the best old domain's perplexity on French


@pytest.fixture(scope="module")
def grafted(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("fr") / "grafted"
    engine.run("moe-extract", "graft", engine.DEMO, "--from", FR, "--as", "fr", "-o", out)
    return out


def test_its_files_are_those_of_its_lock() -> None:
    engine.run("moe-extract", "inspect", FR, "--check")
    for name in ("trunk.safetensors", "tokenizer.json"):
        assert (FR / name).read_bytes() == (engine.DEMO / name).read_bytes()


def test_the_graft_is_exact_and_the_old_domains_have_their_bits(grafted: pathlib.Path) -> None:
    said = engine.run(
        "moe-extract", "verify", grafted, "--against", engine.DEMO, "--donor", FR, "--as", "fr", "--no-certificate"
    )
    assert said.startswith("identical")
    ids = engine.random_ids(engine.DEMO, [100, 256])
    for domain in ("zh", "en", "cpp", "python"):
        for was, now in zip(
            engine.logits(engine.DEMO, domain, ids), engine.logits(grafted, domain, ids), strict=True
        ):
            assert (was.view(np.uint32) == now.view(np.uint32)).all()


def test_its_perplexity_is_that_of_the_card_and_far_below_every_old_domains(grafted: pathlib.Path) -> None:
    card = json.loads((FR / "eval/matrix.json").read_text())["fr"]
    with Server(grafted, "--pack-dir", "none") as server:
        scored = json.loads(
            engine.run("moe-client", "score", "--matrix", FR / "eval", "--json", "--address", server.grpc)
        )
    row = next(row for row in scored["rows"] if row["text"] == "fr")
    assert set(row["perplexity"]) == {"zh", "en", "cpp", "python", "fr"}
    for domain, perplexity in row["perplexity"].items():
        assert perplexity == pytest.approx(card["perplexity"][domain], rel=0.01), domain  # tiers differ by rounding
    assert row["perplexity"]["fr"] <= AT_MOST * min(p for domain, p in row["perplexity"].items() if domain != "fr")
