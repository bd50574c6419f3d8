"""The directory that a growth ends in: an ordinary Scion model of the one new domain, ready to be grafted."""

import json
import os
import pathlib
import shutil
import subprocess
from typing import Any

import torch
from safetensors.torch import save_file

from scion.training.errors import TrainingError
from scion.training.slice_model import PROJECTIONS, SliceModel, expert_name, tensor_name
from scion.training.source import Source

COMPANIONS = ("added_tokens.json", "chat_template.jinja", "generation_config.json", "merges.txt",
              "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def domain_tensors(slice_model: SliceModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What the domain's file holds: weights of the model's type, routes I32, route weights where they are not equal."""
    domain, tensors = slice_model.config.domains[0]["name"], {}
    for layer, group in slice_model.groups():
        for number, expert in enumerate(group.experts):
            for projection in PROJECTIONS:
                weight = getattr(expert, projection).weight
                tensors[expert_name(layer, domain, number, projection)] = weight.detach().to("cpu", dtype).contiguous()
        tensors[tensor_name(layer, domain, "route")] = group.route.to("cpu", torch.int32).contiguous()
        if len(set(group.route_weight.tolist())) > 1:
            tensors[tensor_name(layer, domain, "route_weight")] = group.route_weight.float().cpu().contiguous()
    return tensors


def place_trunk(source: Source, folder: pathlib.Path, trunk: str) -> None:
    """Data files are immutable, so a hard link is as good as a copy, and costs nothing. trunk: "link" falls back to a
    copy on another file system; "copy" copies."""
    for name in source.trunk_files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        origin = (source.directory / name).resolve()
        if trunk == "link":
            try:
                os.link(origin, target)
                continue
            except OSError:
                pass
        shutil.copyfile(origin, target)


def write_donor(slice_model: SliceModel, folder: pathlib.Path, trunk: str, route_seed: int) -> None:
    """Writes all but lock and record into the empty folder."""
    source, domain = slice_model.source, slice_model.config.domains[0]
    place_trunk(source, folder, trunk)
    (folder / "domains").mkdir(exist_ok=True)
    file = f"domains/{domain['name']}.safetensors"
    first = next(name for name in source.tensors if name.endswith(".gate_proj.weight") and ".mlp.domains." in name)
    tensors = domain_tensors(slice_model, source.dtypes[first])
    save_file(tensors, folder / file, metadata={"format": "pt"})
    weight_map = {name: source.tensors[name] for name in source.trunk} | {name: file for name in tensors}
    config = source.config_json | {"domains": [domain], "default_domain": domain["name"],
                                   "routes": {"seed": route_seed, "balanced_by": "token_mass"}}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))})
    write_json(folder / "config.json", config)
    shutil.copymode(folder / "config.json", folder / file)  # save_file makes it the owner's alone
    for name in COMPANIONS:
        if (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, folder / name)


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def lock(folder: pathlib.Path, program: str | None) -> bool:
    """Has moe-extract write scion.lock.json; False if the program is not found. TrainingError if it refuses."""
    found = shutil.which(program or "moe-extract")
    if found is None:
        if program is not None:
            raise TrainingError(f"{program}: no such program")
        return False
    result = subprocess.run([found, "lock", str(folder)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise TrainingError(f"{found} lock: {result.stderr.strip()}")
    return True
