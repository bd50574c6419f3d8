"""Packed weights are kept between starts: used by the second, in nobody's way, and whole whatever happens."""

import shutil
import subprocess

import httpx
import pytest

from moe_serve import READY, Server, bin_directory

PACKS = ["domain-cpp.as-is.pack", "domain-en.as-is.pack", "domain-python.as-is.pack", "domain-zh.as-is.pack",
         "trunk.as-is.pack"]


@pytest.fixture
def model(demo, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(demo, directory, ignore=shutil.ignore_patterns("eval", "recipe"))
    return directory


def packs_below(directory):
    """Name -> bytes of all packed files, of any model."""
    return {path.name: path.read_bytes() for path in directory.rglob("*.pack")}


def text_of(server):
    answer = httpx.post(f"{server.url}/v1/completions", timeout=60, trust_env=False,
                        json={"prompt": "The king said", "domain": "en", "max_tokens": 20, "temperature": 0})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def test_the_second_start_maps_what_the_first_has_written(model, tmp_path):
    packs = tmp_path / "packs"
    with Server(model, "--pack-dir", "none") as server:
        text = text_of(server)
        assert server.metric("scion_weight_bytes_shared") == 0
    assert not packs.exists()
    with Server(model, "--pack-dir", packs) as server:
        assert text_of(server) == text
        assert server.stderr().count("packed weights written to") == len(PACKS)
    written = packs_below(packs)
    assert sorted(written) == PACKS
    with Server(model, "--pack-dir", packs) as server, Server(model, "--pack-dir", packs) as other:
        for each in (server, other):
            assert text_of(each) == text
            metrics = each.metrics()
            assert metrics["scion_weight_bytes_shared"] == metrics["scion_weight_bytes"] > 0
            assert each.stderr().count("packed weights from") == len(PACKS)
            assert "written" not in each.stderr()
    assert packs_below(packs) == written


def test_a_small_model_leaves_nothing_beside_it(model):
    with Server(model) as server:
        server.assert_answers()
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_a_place_that_cannot_be_written_is_said_once(model, tmp_path):
    place = tmp_path / "file"
    place.write_text("not a directory")
    with Server(model, "--pack-dir", place) as server:
        server.assert_answers()
        assert server.stderr().count("packed weights are not kept") == 1
        assert server.metric("scion_weight_bytes_shared") == 0


def test_a_cut_is_the_same_beside_a_cache(model, tmp_path):
    def cut(name):
        subprocess.run([bin_directory() / "moe-extract", "slice", model, "--domain", "cpp", "-o", tmp_path / name],
                       check=True, capture_output=True)
        return {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.safetensors")}

    before = cut("before")
    with Server(model, "--pack-dir", f"{model}.scion-pack") as server:
        server.assert_answers()
    assert packs_below(tmp_path)
    assert before and cut("after") == before
    subprocess.run([bin_directory() / "moe-extract", "inspect", "--check", model], check=True, capture_output=True)


@pytest.mark.parametrize("call", ["fallocate", "pwrite64", "fsync", "rename", "mkdir"])
def test_a_kill_leaves_whole_files_or_none(model, tmp_path, call):
    packs = tmp_path / "packs"
    with Server(model, "--pack-dir", packs) as server:
        text = text_of(server)
    whole = packs_below(packs)
    number = 0
    while True:
        number += 1
        shutil.rmtree(packs)
        process = subprocess.Popen(
            ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
             f"inject={call}:signal=SIGKILL:when={number}", bin_directory() / "moe-serve", model, "--pack-dir", packs,
             "--http-port", "0", "--grpc-port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        ready = READY.match(process.stdout.readline().rstrip("\n"))
        process.terminate()
        process.wait(30)
        process.stdout.close()
        if ready:
            break
        for name, data in packs_below(packs).items():
            assert name.startswith(".") or data == whole[name], f"{call} {number}: {name}"
    assert number > 1, f"no {call} was ever hit"
    with Server(model, "--pack-dir", packs) as server:
        assert text_of(server) == text
    assert packs_below(packs) == whole
    assert not list(packs.rglob("*.tmp")), "what the killed have left is removed"
