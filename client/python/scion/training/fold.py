"""A folded domain, an ordinary Llama directory, as a training needs it: only its folded FFNs can change."""

import json
import pathlib
import shutil

import torch
import transformers
from transformers import AutoModelForCausalLM

from scion.training import frozen
from scion.training.errors import TrainingError
from scion.training.source import PROJECTIONS

INDEX = "model.safetensors.index.json"


class Fold:
    """layers: those whose FFN is folded, the sparse layers of the model that the fold was made of.

    Neurons of padding (zeros throughout) stay zero: no gradient reaches them. Hidden units that carry the route are
    only read: what an FFN would add to them is held at zero.
    """

    def __init__(self, directory: pathlib.Path, layers: list[int], device: torch.device, autocast: bool) -> None:
        self.directory, self.device, self._autocast = directory, device, autocast
        path = directory / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path}: {error}") from error
        if not isinstance(config, dict) or config.get("model_type") != "llama":
            raise TrainingError(f"{directory}: not a dense Llama; moe-extract densify makes one")
        self.vocab_size, self.context_tokens = config["vocab_size"], config["max_position_embeddings"]
        if config["num_hidden_layers"] <= max(layers):
            raise TrainingError(
                f"{directory}: {config['num_hidden_layers']} layers, and layer {max(layers)} is to be one "
                "that was folded"
            )
        transformers.utils.logging.disable_progress_bar()
        # Not the dtype of the config: norms may be F32 among BF16.
        key = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
        try:
            self.model = AutoModelForCausalLM.from_pretrained(directory, **{key: torch.float32})
        except Exception as error:  # whatever a damaged directory makes Transformers say
            raise TrainingError(f"{directory}: Transformers can't load it: {error}") from error
        self.model.requires_grad_(False).eval().to(device)
        self.files = sorted(set(self._weight_map().values()))
        self._parameters = self._folded_parameters(layers)

    def _weight_map(self) -> dict[str, str]:
        if (self.directory / INDEX).is_file():
            return json.loads((self.directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return {name: "model.safetensors" for name in frozen.read_header(self.directory / "model.safetensors")[0]}

    def _folded_parameters(self, layers: list[int]) -> dict[str, torch.nn.Parameter]:
        parameters = dict(self.model.named_parameters())
        # No norm that comes later reads a unit of the route.
        is_read = (parameters["model.norm.weight"] != 0).float()[:, None]
        folded = {}
        for layer in layers:
            for projection in PROJECTIONS:
                name = f"model.layers.{layer}.mlp.{projection}.weight"
                folded[name] = parameters[name]
                folded[name].requires_grad_(True)
                if projection == "down_proj":
                    parameters[name].register_hook(lambda gradient: gradient * is_read)
        return folded

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The folded FFNs' weights, by the names of their tensors."""
        return self._parameters

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [windows, tokens] -> [windows, tokens, hidden_size], what the head gets."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return self.model.model(input_ids=ids.to(self.device), use_cache=False).last_hidden_state

    @property
    def head(self) -> torch.Tensor:
        """[vocab_size, hidden_size] fp32."""
        return self.model.lm_head.weight

    def hashes(self) -> dict[str, str]:
        """sha256 of every tensor's data on disk, by name."""
        return {
            name: digest for file in self.files for name, digest in frozen.file_hashes(self.directory / file).items()
        }

    def frozen_hashes(self) -> dict[str, str]:
        """sha256 of every tensor in memory that is not trained, fp32."""
        return {
            name: frozen.tensor_hash(tensor, torch.float32)
            for name, tensor in self.model.state_dict().items()
            if name not in self._parameters
        }

    def write(self, folder: pathlib.Path) -> None:
        """The directory once more, the folded FFNs' data put in the places of the old ones. No lock."""
        for path in self.directory.iterdir():
            if path.is_file() and path.name != "scion.lock.json":
                shutil.copyfile(path, folder / path.name)
        for file in self.files:
            header, data = frozen.read_header(folder / file)
            with (folder / file).open("r+b") as stream:
                for name, parameter in self._parameters.items():
                    if name in header:
                        stream.seek(data + header[name]["data_offsets"][0])
                        stream.write(frozen.tensor_bytes(parameter, frozen.DTYPES[header[name]["dtype"]]))
