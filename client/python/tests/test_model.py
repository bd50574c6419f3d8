"""The model class by itself: training, caches, batches, names, and what it refuses."""

import json
import pathlib
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from scion.configuration_scion import ScionConfig
from scion.modeling_scion import ScionExpertGroup, ScionForCausalLM

TINY = dict(vocab_size=50, hidden_size=16, intermediate_size=24, moe_intermediate_size=20, num_hidden_layers=3,
            num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3, sparse_layers=[0, 2],
            num_experts_per_tok=2,
            domains=[{"name": "a", "num_experts": 3}, {"name": "b", "num_experts": 2}])


def tiny(**changes) -> ScionForCausalLM:
    torch.manual_seed(0)
    return ScionForCausalLM(ScionConfig(**{**TINY, **changes})).eval()


def ids_of(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, TINY["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def test_an_expert_group_is_the_sum_over_slots_token_by_token() -> None:
    """Also of its gradients: the naive loop of the definition, on the same parameters."""
    torch.manual_seed(0)
    group = ScionExpertGroup(ScionConfig(**TINY), 3).double()
    group.route_weight.copy_(torch.tensor([0.7, -0.2]))
    x, ids = torch.randn(11, 16, dtype=torch.double, requires_grad=True), ids_of(11)
    rows = []
    for t in range(11):
        row = torch.zeros(16, dtype=torch.double)
        for slot in range(2):
            expert = group.experts[int(group.route[slot, ids[t]])]
            gate, up = expert.gate_proj.weight @ x[t], expert.up_proj.weight @ x[t]
            row = row + group.route_weight[slot] * (expert.down_proj.weight @ (F.silu(gate) * up))
        rows.append(row)
    naive, ours = torch.stack(rows), group(x, ids)
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-12)
    parameters = [x, *group.parameters()]
    seed = torch.randn(11, 16, dtype=torch.double)
    for mine, theirs in zip(torch.autograd.grad(ours, parameters, seed, allow_unused=True),
                            torch.autograd.grad(naive, parameters, seed, allow_unused=True)):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_training_one_domain_moves_it_alone() -> None:
    model = tiny().train()
    model.requires_grad_(False)
    for layer in TINY["sparse_layers"]:
        model.model.layers[layer].mlp.domains["b"].requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    ids, losses = ids_of(4, 20), []
    for _ in range(60):
        loss = model(ids, domain="b", labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(".domains.b.experts." in name for name in changed)


def test_the_loss_is_of_the_next_token_where_there_is_a_label() -> None:
    model, ids = tiny(), ids_of(2, 9)
    labels = ids.clone()
    labels[1, :5] = -100
    answer = model(ids, domain="a", labels=labels)
    scores = torch.log_softmax(answer.logits, dim=-1)
    counted = [-scores[b, t - 1, ids[b, t]] for b in range(2) for t in range(1, 9) if labels[b, t] != -100]
    assert len(counted) == 12
    torch.testing.assert_close(answer.loss, torch.stack(counted).mean())


def test_autocast_trains_a_batch_of_several_domains() -> None:
    model, ids = tiny(), ids_of(3, 9)
    exact = model(ids, domain=["a", "b", "a"], labels=ids)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(ids, domain=["a", "b", "a"], labels=ids)
    torch.testing.assert_close(rounded.loss, exact.loss, rtol=0.05, atol=0.05)
    rounded.loss.backward()


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(ids_of(2, 9), domain=["a", "b"], labels=ids_of(2, 9)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_cache_and_padding_change_nothing() -> None:
    model, prompts = tiny(), [ids_of(9).tolist(), ids_of(4, seed=2).tolist()]
    alone = []
    for prompt, domain in zip(prompts, ("a", "b")):
        ids = list(prompt)
        for _ in range(12):  # without a cache
            ids.append(int(model(torch.tensor([ids]), domain=domain, use_cache=False).logits[0, -1].argmax()))
        alone.append(ids[len(prompt):])
    batch = torch.tensor([prompts[0], [0] * 5 + prompts[1]])
    mask = torch.tensor([[1] * 9, [0] * 5 + [1] * 4])
    together = model.generate(batch, attention_mask=mask, domain=["a", "b"], max_new_tokens=12, do_sample=False,
                              pad_token_id=0)
    assert together[:, 9:].tolist() == alone
    assert alone[0] != model.generate(batch[:1], domain="b", max_new_tokens=12, do_sample=False)[0, 9:].tolist()


def test_a_chunk_after_a_cache_sees_what_came_before() -> None:
    model, ids = tiny(num_attention_heads=4, num_key_value_heads=2), ids_of(2, 12)
    whole = model(ids, domain=["a", "b"]).logits
    first = model(ids[:, :5], domain=["a", "b"])
    second = model(ids[:, 5:], domain=["a", "b"], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole)
    cache = model(ids[:, :5], domain=["a", "b"]).past_key_values
    for place in range(5, 12):  # token by token
        one = model(ids[:, place:place + 1], domain=["a", "b"], past_key_values=cache)
        torch.testing.assert_close(one.logits[:, 0], whole[:, place])
    torch.testing.assert_close(model(ids, domain=["a", "b"], logits_to_keep=3).logits, whole[:, -3:])


def test_beams_keep_the_domain_of_their_prompt() -> None:
    model, ids = tiny(), ids_of(2, 6)
    options = dict(max_new_tokens=5, num_beams=3, do_sample=False, pad_token_id=0)
    both = model.generate(ids, domain=["a", "b"], **options)
    for row, domain in enumerate(("a", "b")):
        assert both[row].tolist() == model.generate(ids[row:row + 1], domain=domain, **options)[0].tolist()


def test_no_domain_means_the_default_one() -> None:
    ids = ids_of(1, 6)
    torch.testing.assert_close(tiny()(ids).logits, tiny()(ids, domain="a").logits)
    model = tiny(default_domain="b")
    torch.testing.assert_close(model(ids, domain=[None]).logits, model(ids, domain="b").logits)
    assert not torch.equal(model(ids).logits, model(ids, domain="a").logits)


def test_what_a_call_cannot_mean_is_refused() -> None:
    model, ids = tiny(), ids_of(2, 6)
    with pytest.raises(ValueError, match="no domain 'c'; there are: a, b"):
        model(ids, domain="c")
    with pytest.raises(ValueError, match="no domain 'c'; there are: a, b"):
        model.generate(ids, domain="c", max_new_tokens=2)
    with pytest.raises(ValueError, match="3 domains for a batch of 2"):
        model(ids, domain=["a", "b", "a"])
    with pytest.raises(ValueError, match=r"attention_mask \[2, 5\]: \[2, 6\] is needed"):
        model(ids, attention_mask=torch.ones(2, 5))
    with pytest.raises(TypeError, match="has no arguments domian"):
        model(ids, domian="b")
    with pytest.raises(ValueError, match="needs input_ids"):
        model(ids, inputs_embeds=torch.zeros(2, 6, 16))


@pytest.mark.parametrize("changes, message", [
    ({"domains": [{"name": "A", "num_experts": 1}]}, "domain name 'A'"),
    ({"domains": [{"name": "a", "num_experts": 1}] * 2}, "names one twice: a, a"),
    ({"default_domain": "c"}, "no domain 'c'; there are: a, b"),
    ({"sparse_layers": [3]}, "sparse layer 3: the model has 3 layers"),
    ({"domains": []}, "'sparse_layers' without 'domains'"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'yarn'"),
])
def test_a_config_that_cannot_be_computed_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScionConfig(**{**TINY, **changes})


@pytest.fixture
def directory(models: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """A model to damage, which loads."""
    shutil.copytree(models["unequal"], tmp_path / "model")
    ScionForCausalLM.from_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_domain(directory: pathlib.Path, change) -> None:
    tensors = load_file(directory / "domains/beta.safetensors")
    change(tensors)
    save_file(tensors, directory / "domains/beta.safetensors", {"format": "pt"})
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if ".beta." not in name}
    index["weight_map"] |= {name: "domains/beta.safetensors" for name in tensors}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_tensor_that_is_missing_is_no_random_one(directory: pathlib.Path) -> None:
    edit_domain(directory, lambda tensors: tensors.pop("model.layers.2.mlp.domains.beta.route"))
    with pytest.raises(ValueError, match=r"lacks 1 tensors: model.layers.2.mlp.domains.beta.route"):
        ScionForCausalLM.from_pretrained(directory)


def test_a_tensor_that_nobody_uses_is_refused(directory: pathlib.Path) -> None:
    edit_domain(directory, lambda tensors: tensors.update({"model.layers.2.mlp.domains.beta.gate": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"has unknown 1 tensors: model.layers.2.mlp.domains.beta.gate"):
        ScionForCausalLM.from_pretrained(directory)


def test_a_route_to_no_expert_is_refused(directory: pathlib.Path) -> None:
    for entry in (2, -1):
        edit_domain(directory, lambda t: t["model.layers.1.mlp.domains.beta.route"].__setitem__((0, 96), entry))
        with pytest.raises(ValueError, match=f"layers.1.mlp.domains.beta.route leads to expert {entry}; there are 2"):
            ScionForCausalLM.from_pretrained(directory)


def test_a_quantised_directory_is_refused_by_its_type(models: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    import engine
    engine.run("moe-extract", "quantize", models["demo"], "--type", "q8_0", "-o", tmp_path / "q8")
    with pytest.raises(ValueError, match=r"quantised \(Q8_0\)"):
        ScionForCausalLM.from_pretrained(tmp_path / "q8")
    engine.run("moe-extract", "export", tmp_path / "q8", "--format", "hf", "-o", tmp_path / "f32")
    assert ScionForCausalLM.from_pretrained(tmp_path / "f32").dtype == torch.float32


def test_weights_are_tied_if_the_config_says_so_and_routes_stay_whole_numbers(models: dict[str, pathlib.Path]) -> None:
    for name, tied in (("unequal", True), ("k2", False)):
        model = ScionForCausalLM.from_pretrained(models[name], dtype=torch.bfloat16)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        assert model.dtype == torch.bfloat16
    weighted = ScionForCausalLM.from_pretrained(models["k3_weighted"], dtype=torch.bfloat16)
    stored = load_file(models["k3_weighted"] / "domains/alpha.safetensors")
    group = weighted.model.layers[1].mlp.domains["alpha"]
    assert torch.equal(group.route, stored["model.layers.1.mlp.domains.alpha.route"])
    assert torch.equal(group.route_weight, stored["model.layers.1.mlp.domains.alpha.route_weight"])


def test_what_transformers_saves_it_loads_again(models: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    """Also below names that a module has for itself."""
    model = ScionForCausalLM.from_pretrained(models["names"]).float().eval()
    assert len(model.train().eval().state_dict()) == len(load_file(models["names"] / "trunk.safetensors")) + 1 + sum(
        2 * (3 * n + 2) for n in (1, 2, 3, 2, 5))  # the tied head; in two layers per domain: experts, route and weights
    model.save_pretrained(tmp_path)
    again = ScionForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 97, (5, 20))
    domains = ["keys", "to", "type", "train", "a-b_c"]
    torch.testing.assert_close(again(ids, domain=domains).logits, model(ids, domain=domains).logits)
