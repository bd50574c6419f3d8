"""A domain is grown, everything else stays as it was, and what is written can be grafted, verified and served."""

import hashlib
import json
import pathlib
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import engine
import tiny_model
from scion.training import loop, start
from scion.training.slice_model import SliceModel
from scion.training.source import Source
from training_fixtures import Program, model, run_grow, texts  # noqa: F401


def files_of(directory: pathlib.Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_twenty_steps_give_a_donor(model: pathlib.Path, run_grow: Program, tmp_path: pathlib.Path) -> None:
    before = files_of(model)
    assert run_grow("--moe-extract", str(engine.BIN / "moe-extract")) == 0
    out = tmp_path / "out"
    assert files_of(model) == before
    assert (out / "trunk.safetensors").samefile(model / "trunk.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held-out.txt", "model", "out", "texts"]
    assert json.loads((out / "scion.lock.json").read_text())["lineage"][0]["source"] == "out"
    record = json.loads((out / "training/record.json").read_text())
    result = record["result"]
    assert result["held_out_loss"] < result["held_out_loss_at_start"] - 0.3
    assert result["steps"] == 20 and result["tokens"] == 20 * 4 * tiny_model.CONTEXT
    rows = (out / "training/loss.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "0", "5", "10", "15", "20"]
    assert (out / "training/loss.svg").read_text().startswith("<svg")

    graft, engines = tmp_path / "grafted", engine.run
    engines("moe-extract", "graft", model, "--from", out, "--as", "cc", "-o", graft)
    said = engines("moe-extract", "verify", graft, "--against", model, "--donor", out, "--as", "cc", "--no-certificate")
    assert said.startswith("identical")
    ids = engine.random_ids(model, [20, 31])
    for domain in ("aa", "bb"):
        for was, now in zip(engine.logits(model, domain, ids), engine.logits(graft, domain, ids)):
            assert (was.view(np.uint32) == now.view(np.uint32)).all()


def test_the_hashes_of_the_record_are_those_of_the_files(
    model: pathlib.Path, run_grow: Program, tmp_path: pathlib.Path
) -> None:
    assert run_grow() == 0
    frozen = json.loads((tmp_path / "out/training/record.json").read_text())["frozen"]
    expected = {
        name: hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for file in model.rglob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    assert frozen["before"] == frozen["after"] == expected


def test_what_is_served_has_learnt_the_text(model: pathlib.Path, run_grow: Program, tmp_path: pathlib.Path) -> None:
    """The loss that the training reports is the engine's, up to bf16 weights."""
    import httpx
    from moe_serve import Server

    assert run_grow("--held-out-windows", "1000") == 0
    out = tmp_path / "out"
    loss = json.loads((out / "training/record.json").read_text())["result"]["held_out_loss"]
    text = (tmp_path / "held-out.txt").read_bytes()
    ids = engine_ids(text.decode())
    windows = [ids[begin : begin + 32] for begin in range(0, len(ids) - 31, 32)]
    total = 0.0
    for window, logits in zip(windows, engine.logits(out, "cc", windows)):
        logits = torch.from_numpy(logits.copy())
        total += float(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(window[1:])))
    assert total / len(windows) == pytest.approx(loss, abs=0.02)
    with Server(out, "--pack-dir", "none") as server:
        answer = httpx.post(
            f"{server.url}/v1/completions",
            timeout=60,
            trust_env=False,
            json={"prompt": "the ", "domain": "cc", "max_tokens": 8},
        ).json()
        assert answer["usage"]["completion_tokens"] >= 1


def engine_ids(text: str) -> list[int]:
    """The tiny tokenizer's ids, by its three merges."""
    ids, place, data = [], 0, text.encode()
    while place < len(data):
        for word, token in ((b"the", 257), (b"th", 256), (b"an", 258)):
            if data.startswith(word, place):
                ids.append(token)
                place += len(word)
                break
        else:
            ids.append(data[place])
            place += 1
    return [*ids, 259]


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.2.self_attn.q_proj.weight"]
)
def test_a_trunk_that_moves_is_found(
    run_grow: Program,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """Also where the movement is too small for the type of the file."""
    real = loop.train

    def train(task, *arguments):
        result = real(task, *arguments)
        with torch.no_grad():
            dict(task.slice_model.model.named_parameters())[name].view(-1)[0] += 1e-6
        return result

    monkeypatch.setattr("scion.grow.train", train)
    assert run_grow() == 1
    assert f"the trunk in memory changed though it was to be frozen: {name}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_domain_file_that_moves_is_found(
    model: pathlib.Path, run_grow: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = loop.train

    def train(*arguments):
        path = model / "domains/bb.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        return real(*arguments)

    monkeypatch.setattr("scion.grow.train", train)
    assert run_grow() == 1
    assert "model.layers.2.mlp.domains.bb.route" in capsys.readouterr().err


@pytest.mark.parametrize("experts", [1, 2, 3, 5])
@pytest.mark.parametrize("init_from", ["aa", "average", "scratch"])
def test_experts_begin_as_asked(model: pathlib.Path, init_from: str, experts: int) -> None:
    source = Source(model)
    slice_model = SliceModel(source, "cc", experts, torch.device("cpu"), autocast=False)
    parents = {"aa": ["aa"], "average": ["aa", "bb"], "scratch": []}[init_from]
    start.start_experts(slice_model, parents, seed=1)
    tensors = load_file(model / "domains/aa.safetensors") | load_file(model / "domains/bb.safetensors")

    def stored(domain: str, expert: int) -> torch.Tensor:
        return tensors[f"model.layers.1.mlp.domains.{domain}.experts.{expert}.up_proj.weight"].float()

    by_domain = {
        "aa": {1: [[0, 1, 2]], 2: [[0, 2], [1]], 3: [[0], [1], [2]], 5: [[0], [1], [2], [0], [1]]},
        "bb": {1: [[0, 1]], 2: [[0], [1]], 3: [[0], [1], [0]], 5: [[0], [1], [0], [1], [0]]},
    }
    group = dict(slice_model.groups())[1]
    for number in range(experts):
        weight = group.experts[number].up_proj.weight
        if not parents:
            assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
            continue
        means = [
            torch.stack([stored(domain, e) for e in by_domain[domain][experts][number]]).mean(0) for domain in parents
        ]
        torch.testing.assert_close(weight, torch.stack(means).mean(0))


def test_a_child_of_one_parent_says_what_the_parent_says(model: pathlib.Path) -> None:
    """With the parent's balance, experts and text, nothing is different before the first step."""
    source = Source(model)
    table = source.read("model.layers.1.mlp.domains.aa.route")[0].numpy()
    assert (start.preferences(source, ["aa"], 1, 0, 3).argmax(1) == table).all()
    assert (start.preferences(source, ["aa"], 1, 0, 3).sum(1) == 1).all()
    assert (start.preferences(source, ["aa", "bb"], 1, 0, 3).sum(1) >= 2).all()


def test_best_is_the_domain_with_the_least_loss_on_the_text(
    model: pathlib.Path, run_grow: Program, tmp_path: pathlib.Path
) -> None:
    """A domain that was trained on such text is found among untrained ones."""
    assert run_grow("--init-from", "bb", "--trunk", "copy") == 0
    assert not (tmp_path / "out/trunk.safetensors").samefile(model / "trunk.safetensors")
    grown = tmp_path / "grown"
    engine.run("moe-extract", "lock", model)
    engine.run("moe-extract", "graft", model, "--from", tmp_path / "out", "--as", "near", "-o", grown)
    assert run_grow(model=grown, out=tmp_path / "second") == 0
    record = json.loads((tmp_path / "second/training/record.json").read_text())
    assert record["parents"] == ["near"] and set(record["old_domains_loss"]) == {"aa", "bb", "near"}


def test_routes_are_balanced_by_the_text(run_grow: Program, tmp_path: pathlib.Path) -> None:
    assert run_grow("--experts", "4", "--seed", "7") == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["domains"] == [{"name": "cc", "num_experts": 4}] and config["default_domain"] == "cc"
    assert config["routes"] == {"seed": 7, "balanced_by": "token_mass"}
    ids = [token for path in sorted((tmp_path / "texts").rglob("*.txt")) for token in engine_ids(path.read_text())]
    mass = np.bincount(ids, minlength=tiny_model.VOCAB)
    for layer in tiny_model.SPARSE:
        route = load_file(tmp_path / "out/domains/cc.safetensors")[f"model.layers.{layer}.mlp.domains.cc.route"]
        assert route.dtype == torch.int32 and route.shape == (1, tiny_model.VOCAB)
        loads = np.bincount(route[0].numpy(), weights=mass, minlength=4)
        assert loads.max() - loads.min() <= mass.max()


def test_tables_of_two_rows(run_grow: Program, tmp_path: pathlib.Path) -> None:
    two = tiny_model.make(tmp_path / "two", {"aa": 3, "bb": 2}, slots=2)
    assert run_grow(model=two) == 0
    for layer in tiny_model.SPARSE:
        route = load_file(tmp_path / "out/domains/cc.safetensors")[f"model.layers.{layer}.mlp.domains.cc.route"]
        assert route.shape == (2, tiny_model.VOCAB) and bool((route[0] != route[1]).all())
    engine.run("moe-extract", "lock", tmp_path / "out")


def test_twenty_steps_on_the_demo(texts: dict[str, pathlib.Path], run_grow: Program, tmp_path: pathlib.Path) -> None:
    assert run_grow("--window", "64", "--batch", "2", model=engine.DEMO, out=tmp_path / "out") == 0
    shutil.copytree(engine.DEMO, tmp_path / "demo")
    engine.run("moe-extract", "graft", tmp_path / "demo", "--from", tmp_path / "out", "--as", "cc", "--in-place")
    said = engine.run(
        "moe-extract",
        "verify",
        tmp_path / "demo",
        "--against",
        engine.DEMO,
        "--donor",
        tmp_path / "out",
        "--as",
        "cc",
        "--no-certificate",
    )
    assert said.startswith("identical")
    result = json.loads((tmp_path / "out/training/record.json").read_text())["result"]
    assert result["held_out_loss"] < result["held_out_loss_at_start"] - 0.5
