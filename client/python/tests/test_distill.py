"""A fold learns to follow its slice; nothing but its folded FFNs moves."""

import json
import pathlib
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import engine
import tiny_model
from scion.training import loop, sampled_text
from scion.training.fold import Fold
from training_fixtures import Program, model, run_distill, texts  # noqa: F401

FOLDED = {
    f"model.layers.{layer}.mlp.{projection}_proj.weight"
    for layer in tiny_model.SPARSE
    for projection in ("gate", "up", "down")
}


@pytest.fixture
def fold(model: pathlib.Path, texts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """Of aa, one expert wide, its three experts told apart by route channels."""
    calibration = tmp_path / "calibration.txt"
    calibration.write_text(tiny_model.text(3000, seed=4))
    engine.run(
        "moe-extract",
        "densify",
        model,
        "--domain",
        "aa",
        "--width",
        1,
        "--method",
        "weighted",
        "--route-channels",
        "on",
        "--calibration",
        calibration,
        "-o",
        tmp_path / "fold",
    )
    return tmp_path / "fold"


def differing(a: pathlib.Path, b: pathlib.Path) -> set[str]:
    ours, theirs = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(ours[name].dtype == theirs[name].dtype for name in ours)
    return {name for name in ours if not torch.equal(ours[name], theirs[name])}


def divergence(model: pathlib.Path, directory: pathlib.Path, ids: list[list[int]]) -> float:
    """KL of a fold from domain aa, nats per token, by the engine's logits."""
    total = 0.0
    for theirs, ours in zip(engine.logits(model, "aa", ids), engine.logits(directory, "default", ids)):
        target, given = (torch.log_softmax(torch.from_numpy(rows.copy()), -1) for rows in (theirs, ours))
        total += float((target.exp() * (target - given)).sum(-1).mean())
    return total / len(ids)


def test_training_brings_a_fold_nearer_to_its_slice(
    model: pathlib.Path, fold: pathlib.Path, run_distill: Program, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "out"
    assert (
        run_distill(
            fold,
            f"{model}@aa",
            "--steps",
            "150",
            "--learning-rate",
            "0.03",
            "--moe-extract",
            str(engine.BIN / "moe-extract"),
        )
        == 0
    )
    assert differing(out, fold) == FOLDED
    # Its lock says still what it was folded from, so that verify measures it against its slice.
    said = engine.run(
        "moe-extract",
        "verify",
        out,
        "--against",
        model,
        "--eval",
        tmp_path / "held-out.txt",
        "--max-kl",
        5,
        "--no-certificate",
    )
    assert "KL" in said
    record = json.loads((out / "training/record.json").read_text())
    assert set(record["frozen"]["before"]) == set(load_file(out / "model.safetensors")) - FOLDED
    assert record["frozen"]["before"] == record["frozen"]["after"]
    ids = [list((tmp_path / "held-out.txt").read_bytes()[begin : begin + 32]) for begin in (0, 1000, 2000)]

    assert divergence(model, out, ids) < 0.8 * divergence(model, fold, ids)
    # An ordinary Llama still: Transformers says what the engine says.
    dense = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    with torch.no_grad():
        given = dense(torch.tensor([ids[0]])).logits[0].numpy()
    expected = engine.logits(out, "default", ids[:1])[0]
    assert np.abs(given - expected).max() < 1e-4 * np.abs(expected).max()


def test_padding_stays_zero_and_the_route_is_not_written_to(
    model: pathlib.Path, fold: pathlib.Path, run_distill: Program, tmp_path: pathlib.Path
) -> None:
    assert run_distill(fold, f"{model}@aa", "--text-share", "0.5") == 0
    before, after = (load_file(path / "model.safetensors") for path in (fold, tmp_path / "out"))
    hidden = before["model.norm.weight"] != 0
    assert int(hidden.sum()) == tiny_model.HIDDEN < len(hidden)
    for layer in tiny_model.SPARSE:
        prefix = f"model.layers.{layer}.mlp."
        # intermediate_size is the trunk's 64; an expert has 48 neurons.
        assert (
            not after[f"{prefix}gate_proj.weight"][48:].any() and not after[f"{prefix}down_proj.weight"][:, 48:].any()
        )
        assert torch.equal(after[f"{prefix}down_proj.weight"][~hidden], before[f"{prefix}down_proj.weight"][~hidden])
        assert not torch.equal(
            after[f"{prefix}gate_proj.weight"][:48, ~hidden], before[f"{prefix}gate_proj.weight"][:48, ~hidden]
        )


def test_a_trunk_that_moves_is_found(
    model: pathlib.Path,
    fold: pathlib.Path,
    run_distill: Program,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = loop.train

    def train(task, *arguments):
        result = real(task, *arguments)
        with torch.no_grad():
            task._fold.model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-6
        return result

    monkeypatch.setattr("scion.distill.train", train)
    assert run_distill(fold, f"{model}@aa") == 1
    assert "model.layers.0.mlp.up_proj.weight" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_only_folded_layers_have_gradients(model: pathlib.Path, fold: pathlib.Path) -> None:
    loaded = Fold(fold, list(tiny_model.SPARSE), torch.device("cpu"), autocast=False)
    assert set(loaded.parameters()) == FOLDED
    assert {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad} == FOLDED


def test_what_does_not_fit_is_said(
    model: pathlib.Path,
    fold: pathlib.Path,
    run_distill: Program,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tiny_model.make(tmp_path / "other", {"aa": 2})
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["content"] = "<|end|>"
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    for where, teacher, message in (
        (fold, f"{model}@zz", "there are: aa, bb"),
        (fold, str(model), "MODEL@DOMAIN"),
        (model, f"{model}@aa", "not a dense Llama"),
        (fold, f"{other}@aa", "another vocabulary"),
        (tmp_path / "nowhere", f"{model}@aa", "config.json"),
    ):
        assert run_distill(where, teacher) == 1
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
        assert not (tmp_path / "out").exists() and list(tmp_path.glob(".out*")) == []


@pytest.mark.parametrize("with_text", [True, False])
def test_stopped_and_resumed_it_is_the_same_run(
    model: pathlib.Path,
    fold: pathlib.Path,
    run_distill: Program,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    with_text: bool,
) -> None:
    monkeypatch.setattr(sampled_text, "CHUNK_WINDOWS", 8)  # the run ends within one, and needs several
    texts = {} if with_text else {"texts": []}
    assert run_distill(fold, f"{model}@aa", out=tmp_path / "whole", **texts) == 0
    step = loop._Run._step

    def interrupting(self: loop._Run, done: float) -> None:
        step(self, done)
        if self._state.step == 7:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", interrupting)
        assert run_distill(fold, f"{model}@aa", **texts) == 130
    assert run_distill(fold, f"{model}@aa", "--resume", "--temperature", "0.5", **texts) == 1
    assert run_distill(fold, f"{model}@aa", "--resume", **texts) == 0
    assert differing(tmp_path / "out", tmp_path / "whole") == set()
    curves = [(tmp_path / out / "training" / "loss.csv").read_text().splitlines() for out in ("out", "whole")]
    without_seconds = [[row.split(",")[:2] + row.split(",")[3:] for row in rows] for rows in curves]
    assert without_seconds[0] == without_seconds[1]


def test_a_fold_learns_from_what_the_slice_writes_alone(
    model: pathlib.Path,
    fold: pathlib.Path,
    run_distill: Program,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without moe-extract: it is said how to make the lock
    assert run_distill(fold, f"{model}@aa", "--steps", "150", "--learning-rate", "0.03", texts=[]) == 0
    assert not (tmp_path / "out/scion.lock.json").exists()
    assert f"moe-extract lock {tmp_path / 'out'} --replace" in capsys.readouterr().err
    record = json.loads((tmp_path / "out/training/record.json").read_text())
    assert record["text"] is None and record["settings"]["sample share"] == 1
    assert record["settings"]["patience"] == 0
    assert record["result"]["held_out_loss"] < 0.8 * record["result"]["held_out_loss_at_start"]
    # On a text that no run has seen, by the engine: nearer to the slice than before.
    ids = [list(tiny_model.text(4000, seed=9).encode()[begin : begin + 32]) for begin in (0, 1000, 2000, 3000)]
    assert divergence(model, tmp_path / "out", ids) < 0.8 * divergence(model, fold, ids)


def test_the_record_has_the_perplexities_on_what_is_held_out(
    model: pathlib.Path,
    fold: pathlib.Path,
    run_distill: Program,
    texts: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
) -> None:
    """By the engine, on all whole windows of the held-out text."""
    assert run_distill(fold, f"{model}@aa", "--held-out-windows", "10000") == 0
    record = json.loads((tmp_path / "out/training/record.json").read_text())
    encoded = Tokenizer.from_file(str(model / "tokenizer.json")).encode(texts["held_out"].read_text()).ids
    ids = [encoded[begin : begin + 32] for begin in range(0, len(encoded) - 31, 32)]
    for directory, domain, what in (
        (model, "aa", "slice"),
        (fold, "default", "fold_at_start"),
        (tmp_path / "out", "default", "fold"),
    ):
        losses = [
            torch.nn.functional.cross_entropy(torch.from_numpy(rows.copy())[:-1], torch.tensor(window[1:]))
            for rows, window in zip(engine.logits(directory, domain, ids), ids, strict=True)
        ]
        assert record["held_out_perplexity"][what] == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-3)


def test_shares_and_texts_that_do_not_fit_are_said(
    model: pathlib.Path,
    fold: pathlib.Path,
    run_distill: Program,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, texts, message in (
        (["--sample-share", "0.5"], [], "need --text"),
        ([], ["--held-out", str(tmp_path / "held-out.txt")], "need --text"),
        (["--sample-share", "1.5"], None, "--sample-share 1.5: outside [0, 1]"),
        (["--text-share", "-1"], None, "--text-share -1.0: outside [0, 1]"),
    ):
        assert run_distill(fold, f"{model}@aa", *arguments, **({} if texts is None else {"texts": texts})) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists() and list(tmp_path.glob(".out*")) == []
