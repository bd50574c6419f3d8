"""The model class computes what the C++ engine computes."""

import pathlib

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import engine
from scion.modeling_scion import ScionForCausalLM

TOLERANCE = 1e-4  # of the greatest magnitude among the logits
NAMES = ["demo", "slice", "unequal", "k2", "k3_weighted", "names"]


def load(directory: pathlib.Path) -> ScionForCausalLM:
    return ScionForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def assert_close(ours: torch.Tensor, engines: np.ndarray, what: str) -> None:
    difference = np.abs(ours.detach().numpy() - engines).max() / np.abs(engines).max()
    assert difference < TOLERANCE, f"{what}: {difference:.2e} of the greatest logit"


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_engines(models: dict[str, pathlib.Path], name: str) -> None:
    model = load(models[name])
    sequences = engine.random_ids(models[name], [60, 1, 23])
    for domain in model.config.domain_names:
        expected = engine.logits(models[name], domain, sequences)
        for ids, rows in zip(sequences, expected):
            with torch.no_grad():
                assert_close(model(torch.tensor([ids]), domain=domain).logits[0], rows, f"{name}@{domain}")


@pytest.mark.parametrize("name", ["demo", "k2", "names"])
def test_a_padded_batch_of_several_domains_has_each_ones_logits(models: dict[str, pathlib.Path], name: str) -> None:
    model = load(models[name])
    domains = (model.config.domain_names * 3)[:5]
    sequences = engine.random_ids(models[name], [40, 7, 19, 40, 1], seed=2)
    ids, mask = torch.zeros(5, 40, dtype=torch.long), torch.zeros(5, 40, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, -len(sequence):], mask[row, -len(sequence):] = torch.tensor(sequence), 1
    with torch.no_grad():
        logits = model(ids, domain=domains, attention_mask=mask).logits
    for row, (domain, sequence) in enumerate(zip(domains, sequences)):
        assert_close(logits[row, -len(sequence):], engine.logits(models[name], domain, [sequence])[0], domain)


def test_greedy_text_of_an_export_is_the_servers(models: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    """Loaded by name of the directory alone, with the code that lies in it."""
    from moe_serve import Server
    import httpx

    prompts = {"python": "def test_sum(self):\n", "zh": "如果文件不存在，", "cpp": "#include <vector>\n", "en": "The king said"}
    for source, domains in (("demo", ["zh", "en", "cpp", "python"]), ("slice", ["zh", "python"])):
        exported = tmp_path / source
        engine.run("moe-extract", "export", models[source], "--format", "hf", "--type", "f32", "-o", exported)
        model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True).eval()
        assert type(model).__module__.startswith("transformers_modules.")
        tokenizer = AutoTokenizer.from_pretrained(exported)
        with Server(exported, "--weights", "fp32", "--kv-type", "fp32", "--pack-dir", "none") as server:
            for domain in domains:
                answer = httpx.post(f"{server.url}/v1/completions", timeout=60, trust_env=False, json={
                    "prompt": prompts[domain], "domain": domain, "max_tokens": 48, "temperature": 0,
                    "return_token_ids": True}).json()
                prompt = tokenizer(prompts[domain], return_tensors="pt")
                text = model.generate(**prompt, domain=domain, max_new_tokens=48, do_sample=False)
                assert tokenizer.decode(text[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True) == \
                    answer["choices"][0]["text"], domain
