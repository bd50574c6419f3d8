"""A server keeps its generation while the model beneath it changes, and says which one that is."""

import re
import shutil
import signal
import subprocess

import httpx
import pytest

from moe_serve import Server, bin_directory

QUESTIONS = {"en": "The king said", "cpp": "#include <vector>\n", "python": "import os\n"}


@pytest.fixture
def model(demo, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(demo, directory, ignore=shutil.ignore_patterns("eval", "recipe"))
    return directory


def extract(*arguments):
    command = [str(bin_directory() / "moe-extract"), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result


def answer(server, domain, prompt):
    reply = httpx.post(f"{server.url}/v1/completions", timeout=60, trust_env=False,
                       json={"prompt": prompt, "domain": domain, "max_tokens": 24, "temperature": 0})
    return reply.json()["choices"][0]["text"] if reply.status_code == 200 else reply.status_code


def answers(server):
    return {domain: answer(server, domain, prompt) for domain, prompt in QUESTIONS.items()}


def after_hangup(server):
    """What the log says from a SIGHUP on."""
    before = len(server.stderr())
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda _: re.search("a restart takes up|the same generations|can't be read", server.stderr()[before:]),
                    20, "an answer to SIGHUP")
    return server.stderr()[before:]


@pytest.mark.parametrize("packs", ["none", "cache"])
def test_a_running_server_keeps_its_generation(model, tmp_path, packs):
    pack_dir = "none" if packs == "none" else tmp_path / "packs"
    cut = tmp_path / "cpp"
    extract("slice", model, "--domain", "cpp", "-o", cut)
    with Server(model, "--pack-dir", pack_dir) as server:
        assert re.search(r"domain 'en': generation 1 \(domains/en.safetensors, sha256 [0-9a-f]{12}\)", server.stderr())
        before = answers(server)
        assert before["en"] != before["cpp"]
        assert "the disk has the same generations" in after_hangup(server)

        # en becomes cpp's experts, python goes, a new domain comes, and the old files are removed.
        extract("graft", model, "--from", cut, "--as", "en", "--in-place")
        extract("graft", model, "--from", cut, "--as", "cpp2", "--in-place")
        extract("drop", model, "--domain", "python")
        extract("gc", model)
        assert not (model / "domains" / "en.safetensors").exists()
        assert answers(server) == before
        assert answer(server, "cpp2", "x") == 404
        log = after_hangup(server)
        assert "domain 'en': serving generation 1 (domains/en.safetensors" in log
        assert "on disk generation 2 (domains/en.g2.safetensors" in log
        assert re.search(r"domain 'python': serving generation 1 .*, on disk no longer there", log)
        assert "domain 'cpp2': not served, on disk generation 1" in log
        assert "a restart takes up" in log
        assert "domain 'cpp': serving" not in log  # nothing new of it
        assert answers(server) == before

        # Another server on the changed directory, beside the first: each has its own generation.
        with Server(model, "--pack-dir", pack_dir) as second:
            assert "domain 'en': generation 2 (domains/en.g2.safetensors" in second.stderr()
            after = answers(second)
            assert after["cpp"] == before["cpp"]
            assert after["en"] == answer(server, "cpp", QUESTIONS["en"]) != before["en"]
            assert after["python"] == 404
            assert answer(second, "cpp2", QUESTIONS["cpp"]) == before["cpp"]
            assert answers(server) == before
