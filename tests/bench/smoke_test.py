"""The harness at work on a small file: decode keeps to its floor, and a real server bears the load.

Run by `tests/run.sh --only bench`, in the environment of the end-to-end tests (numpy). SCION_BIN: programs from
elsewhere than build/release/bin.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy
import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BIN = pathlib.Path(os.environ.get("SCION_BIN", ROOT / "build/release/bin"))
WORK = ROOT / "build/bench"
FLOOR = 0.6
ATTEMPTS = 3  # a neighbour on the machine can take the bandwidth between its measurement and ours

sys.path.insert(0, str(HERE))
import moe_quality  # noqa: E402
import quality  # noqa: E402
from harness import engines, load  # noqa: E402
from harness.process import ServerProcess  # noqa: E402


def test_decode_reads_weights_at_the_floors_share_of_the_bandwidth_at_least():
    command = [sys.executable, HERE / "compare.py", "--bin", BIN, "--work", WORK, "--alone", "--row",
               "decode-dense-bf16", "--rounds", "3", "--no-limits", "--floor", str(FLOOR)]
    tries = []
    while len(tries) < ATTEMPTS and (not tries or tries[-1].returncode != 0):
        tries.append(subprocess.run(command, capture_output=True, text=True))
        print(tries[-1].stdout, tries[-1].stderr)
    assert tries[-1].returncode == 0, f"below {FLOOR:.0%} of the bandwidth in each of {ATTEMPTS} attempts"
    assert "of the bandwidth measured in the same round" in tries[-1].stdout


def test_a_server_gives_every_client_all_of_its_tokens():
    scion = engines.Scion("scion", BIN, threads=2)
    work = load.Load(vocabulary=4096, clients=4, requests=12, prompt_tokens=32, output_tokens=16)
    with ServerProcess(lambda port: scion.serve_command(ROOT / "deploy/demo", port, 4, 4 * 64)) as server:
        seconds = server.first_answer("/v1/completions", {"prompt": [1, 300], "max_tokens": 1})
        figures = load.run(load.ScionApi, server.port, work)
        assert server.peak_memory_bytes() > 34e6  # the demo's weights
    assert figures["failed"] == 0, figures["errors"]
    assert 0 < figures["ttft_p50"] <= figures["ttft_p99"] < 60
    # Several tokens of so small a model may come in one read: no time between them.
    assert 0 <= figures["itl_p50"] <= figures["itl_p99"] < 60
    assert 0 < seconds < 60


def test_divergence_is_that_of_a_calculation_by_hand(tmp_path):
    # p = (3/4, 1/4), q = (1/2, 1/2): KL(p || q) = 3/4 ln(3/2) + 1/4 ln(1/2). The second position is equal, the third
    # has another highest logit.
    peer = numpy.log(numpy.array([[0.75, 0.25], [0.9, 0.1], [0.75, 0.25]], numpy.float32)) + 5
    scion = numpy.log(numpy.array([[0.5, 0.5], [0.9, 0.1], [0.25, 0.75]], numpy.float32)) - 7
    peer.tofile(tmp_path / "peer")
    scion.tofile(tmp_path / "scion")
    divergence, same = quality.compare_logits(tmp_path / "peer", tmp_path / "scion", 2, rows_at_once=2)
    assert divergence == pytest.approx([0.1308120, 0, 0.5493061], abs=1e-6)
    assert list(same) == [True, True, False]
    scion[:2].tofile(tmp_path / "scion")
    with pytest.raises(ValueError, match="3 positions, Scion 2"):
        quality.compare_logits(tmp_path / "peer", tmp_path / "scion", 2)


def test_a_text_may_leave_the_peers_where_its_logits_are_close_and_nowhere_else():
    assert quality.greedy_verdict([(1, 0.01), (2, 5.0)], [1, 2]) == "equal"
    assert quality.greedy_verdict([(1, 5.0), (2, 0.09), (3, 5.0)], [1, 7, 9]) == "close"
    assert quality.greedy_verdict([(1, 5.0), (2, 0.11), (3, 0.01)], [1, 7, 9]) == "different"


def measured(ours, own, scion_error, peer_error, different=0, own_different=0):
    pairs = {"peer scion": ours, "peer plain": own, "reference scion": scion_error, "reference peer": peer_error}
    texts = {"scion": {"different": different}, "plain": {"different": own_different}}
    return dict({name: {"mean_kl": kl, "top1": 1.0} for name, kl in pairs.items()}, greedy=texts)


def test_a_bound_is_excused_by_the_peers_own_noise_only():
    assert quality.verdict("Q8_0", measured(9e-4, 1e-5, 1e-3, 1e-5)) == quality.KEPT
    assert quality.verdict("Q8_0", measured(4e-3, 3.9e-3, 3e-3, 3e-3)) == quality.EXPLAINED
    assert quality.verdict("Q8_0", measured(4e-3, 2e-3, 3e-3, 3e-3)) == quality.MISSED  # farther than the peer's noise
    assert quality.verdict("Q8_0", measured(4e-3, 3.9e-3, 5e-3, 3e-3)) == quality.MISSED  # a worse approximation
    assert quality.verdict("Q8_0", measured(9e-4, 1e-5, 1e-3, 1e-3, different=5)) == quality.MISSED
    assert quality.verdict("Q8_0", measured(9e-4, 1e-5, 1e-3, 1e-3, 5, own_different=2)) == quality.EXPLAINED


def test_experts_are_equal_only_if_they_are_in_every_layer(tmp_path):
    # Three positions, two layers, two experts each.
    one = numpy.array([0, 3, 1, 2, 0, 3, 1, 2, 0, 3, 1, 2], numpy.int32)
    other = one.copy()
    other[7] = 4  # second position, second layer
    one.tofile(tmp_path / "one")
    other.tofile(tmp_path / "other")
    assert list(moe_quality.same_choices(tmp_path / "one", tmp_path / "other", 3)) == [True, False, True]
    other[:8].tofile(tmp_path / "other")
    with pytest.raises(ValueError, match="12 and 8 experts for 3 positions"):
        moe_quality.same_choices(tmp_path / "one", tmp_path / "other", 3)
    (tmp_path / "none").touch()
    with pytest.raises(ValueError, match="0 and 0 experts"):
        moe_quality.same_choices(tmp_path / "none", tmp_path / "none", 3)


def test_experts_are_those_of_transformers(tmp_path):
    golden = ROOT / "tests/golden/models/qwen3_moe.golden.safetensors"
    with open(golden, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()

    def tensor(name):
        begin, end = header[name]["data_offsets"]
        return numpy.frombuffer(data[begin:end], numpy.int32)

    ids, want = tensor("default.ids"), tensor("default.experts")
    first = 3
    quality.write_sequences(tmp_path / "sequence", [ids.tolist()], first)
    subprocess.run([BIN / "dump_logits", golden.with_name("qwen3_moe"), tmp_path / "sequence", tmp_path / "logits",
                    "--experts", tmp_path / "experts", "--weights", "fp32", "--kv-type", "fp32"], check=True)
    got = numpy.fromfile(tmp_path / "experts", numpy.int32).reshape(len(ids) - first, -1)
    layers = len(want) // len(ids) // header["default.experts"]["shape"][-1]
    of_positions = want.reshape(layers, len(ids), -1).transpose(1, 0, 2).reshape(len(ids), -1)
    assert (got == of_positions[first:]).all()


def moe_measured(share, own_share, kl, own_kl):
    return {"peer scion": {"share": share, "mean_kl": kl, "top1": 0.95},
            "peer plain": {"share": own_share, "mean_kl": own_kl, "top1": 0.97}}


def test_a_gate_routed_file_is_missed_by_its_choices_too():
    assert moe_quality.verdict("Q8_0", moe_measured(0.88, 0.9, 9e-4, 1e-5)) == quality.EXPLAINED
    assert moe_quality.verdict("Q8_0", moe_measured(0.84, 0.9, 9e-4, 1e-3)) == quality.MISSED
    assert moe_quality.verdict("Q8_0", moe_measured(0.35, 0.43, 9e-4, 1e-3)) == quality.EXPLAINED
    assert moe_quality.verdict("Q8_0", moe_measured(0.29, 0.43, 9e-4, 1e-3)) == quality.MISSED
    assert moe_quality.verdict("Q8_0", moe_measured(0.9, 0.9, 1.5e-3, 1.2e-3)) == quality.EXPLAINED
    assert moe_quality.verdict("Q8_0", moe_measured(0.9, 0.9, 1.5e-3, 1e-3)) == quality.MISSED
