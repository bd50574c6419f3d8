"""A Scion directory as a training needs it: its config, its tensors one by one, its hashes. Only reads."""

import json
import pathlib
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from scion.configuration_scion import ScionConfig
from scion.training.errors import TrainingError
from scion.training.frozen import DTYPES, file_hashes, read_header
from scion.training.texts import Encoder

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def tensor_name(layer: int, domain: str, what: str) -> str:
    return f"model.layers.{layer}.mlp.domains.{domain}.{what}"


def expert_name(layer: int, domain: str, expert: int, projection: str) -> str:
    return tensor_name(layer, domain, f"experts.{expert}.{projection}.weight")


class Source:
    """tensors: which file has which. TrainingError if it is no model whose domains can be trained."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.config_json = self._json("config.json")
        if self.config_json.get("model_type") != "scion" or not self.config_json.get("domains"):
            raise TrainingError(
                f"{directory}: not a Scion model with domains (model_type "
                f"{self.config_json.get('model_type')!r}); moe-extract upcycle makes one of a dense model"
            )
        try:
            self.config = ScionConfig(**self.config_json)
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{directory}/config.json: {error}") from error
        self.tensors: dict[str, str] = self._json("model.safetensors.index.json")["weight_map"]
        for file in self.files:
            if pathlib.PurePosixPath(file).is_absolute() or ".." in pathlib.PurePosixPath(file).parts:
                raise TrainingError(f"{directory}: the index names {file!r}, outside the model")
        found = {name: (file, entry) for file in self.files for name, entry in read_header(directory / file)[0].items()}
        for name, file in self.tensors.items():
            if name not in found or found[name][0] != file:
                raise TrainingError(f"{directory}/{file} has no tensor {name}, which the index names")
            if found[name][1]["dtype"] not in DTYPES:
                raise TrainingError(f"{directory}: tensor {name} is {found[name][1]['dtype']}: only float models train")
        self.shapes = {name: entry["shape"] for name, (_, entry) in found.items()}
        self.dtypes = {name: DTYPES[entry["dtype"]] for name, (_, entry) in found.items()}

        self._check_domains()

    def _check_domains(self) -> None:
        config = self.config
        for domain, num_experts in self.domains.items():
            wanted = {
                tensor_name(layer, domain, "route"): [config.num_experts_per_tok, config.vocab_size]
                for layer in config.sparse_layers
            }
            for layer in config.sparse_layers:
                for expert in range(num_experts):
                    for projection in PROJECTIONS:
                        shape = [config.moe_intermediate_size, config.hidden_size]
                        wanted[expert_name(layer, domain, expert, projection)] = (
                            shape[::-1] if projection == "down_proj" else shape
                        )
            for name, shape in wanted.items():
                if self.shapes.get(name) != shape:
                    raise TrainingError(
                        f"{self.directory}: tensor {name} has the shape {self.shapes.get(name)}, "
                        f"config.json asks for {shape}"
                    )

    def _json(self, name: str) -> dict[str, Any]:
        path = self.directory / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TrainingError(f"{path}: no such file; a Scion directory has it") from None
        except ValueError as error:
            raise TrainingError(f"{path}: not JSON: {error}") from error
        if not isinstance(content, dict):
            raise TrainingError(f"{path}: not a JSON object")
        return content

    @property
    def files(self) -> list[str]:
        return sorted(set(self.tensors.values()))

    @property
    def trunk(self) -> list[str]:
        """The names of the tensors that no domain owns."""
        return [name for name in self.tensors if ".mlp.domains." not in name]

    @property
    def trunk_files(self) -> list[str]:
        return sorted({self.tensors[name] for name in self.trunk})

    @property
    def domains(self) -> dict[str, int]:
        """Number of experts by domain."""
        return {domain["name"]: domain["num_experts"] for domain in self.config_json["domains"]}

    def read(self, name: str) -> torch.Tensor:
        """A tensor as it is on disk. KeyError: there is none of that name."""
        with safe_open(self.directory / self.tensors[name], "pt") as file:
            return file.get_tensor(name)

    def hashes(self) -> dict[str, str]:
        """sha256 of the data of every tensor, by name."""
        return {name: digest for file in self.files for name, digest in file_hashes(self.directory / file).items()}

    def encoder(self) -> tuple[Encoder, list[int], int | None]:
        """The tokenizer; what it puts before a text; the token that ends one."""
        return encoder_of(self.directory, self.config.bos_token_id, self.config.eos_token_id)


def encoder_of(
    directory: pathlib.Path, bos: int | None, eos: int | list[int] | None
) -> tuple[Encoder, list[int], int | None]:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise TrainingError(f"{path}: no such file: the texts can't be turned into tokens")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise TrainingError(f"{path}: {error}") from error
    begin = [token for token in tokenizer.encode("").ids if token == bos]
    tokenizer.encode_special_tokens = True

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    return encode, begin, eos[0] if isinstance(eos, list) else eos
