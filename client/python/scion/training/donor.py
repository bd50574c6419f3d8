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
from scion.training.slice_model import SliceModel
from scion.training.source import PROJECTIONS, Source, expert_name, tensor_name

COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


def domain_tensors(slice_model: SliceModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What the domain's file holds: weights of the model's type, routes I32, route weights where they are not equal."""
    domain, tensors = slice_model.domain, {}
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
    source, domain = slice_model.source, {"name": slice_model.domain, "num_experts": slice_model.num_experts}
    place_trunk(source, folder, trunk)
    (folder / "domains").mkdir(exist_ok=True)
    file = f"domains/{slice_model.domain}.safetensors"
    first = next(name for name in source.tensors if name.endswith(".gate_proj.weight") and ".mlp.domains." in name)
    tensors = domain_tensors(slice_model, source.dtypes[first])
    save_file(tensors, folder / file, metadata={"format": "pt"})
    weight_map = {name: source.tensors[name] for name in source.trunk} | {name: file for name in tensors}
    config = source.config_json | {
        "domains": [domain],
        "default_domain": slice_model.domain,
        "routes": {"seed": route_seed, "balanced_by": "token_mass"},
    }
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))}
    )
    write_json(folder / "config.json", config)
    shutil.copymode(folder / "config.json", folder / file)  # save_file makes it the owner's alone
    for name in COMPANIONS:
        if (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, folder / name)


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def find_program(asked: str | None) -> str | None:
    """moe-extract, as asked for or from the PATH; None if nobody asked and there is none. TrainingError if the one that
    was asked for is not there."""
    found = shutil.which(asked or "moe-extract")
    if found is None and asked is not None:
        raise TrainingError(f"{asked}: no such program")
    return found


def lock(folder: pathlib.Path, program: str | None, before: pathlib.Path | None = None) -> None:
    """Has moe-extract, if there is one, write scion.lock.json; its lineage goes on from `before`, another directory's
    lock. TrainingError if it refuses."""
    if program is None:
        return
    command = [program, "lock", str(folder)]
    if before is not None and before.is_file():
        shutil.copyfile(before, folder / before.name)
        command.append("--replace")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise TrainingError(f"{program} lock: {result.stderr.strip()}")
