"""Text that a slice writes itself, as windows of token ids: it takes no corpus, and is like what the slice was made of.

A window begins as a document does; each next token is drawn from what the slice predicts. Windows are written a chunk
at a time, each chunk a function of (seed, its number): a run that goes on from a checkpoint reads the same text.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from transformers import Cache

from scion.training.errors import TrainingError
from scion.training.slice_model import SliceModel

CHUNK_WINDOWS = 256  # at most; fewer if their keys and values would fill more than CHUNK_BYTES
CHUNK_BYTES = 1 << 30
TRAINING, HELD_OUT = 0, 1  # streams: what is held out is never trained on


class _KeysAndValues:
    """Of windows of a known length: room for all of it at once, where a DynamicCache copies all with every token."""

    def __init__(self, num_layers: int, window_tokens: int) -> None:
        self._window_tokens = window_tokens
        self._planes: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * num_layers
        self._tokens = [0] * num_layers

    def get_seq_length(self) -> int:
        return self._tokens[0]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """key, value [windows, heads, tokens, head_dim]: adds them, and gives all that there are."""
        planes = self._planes[layer]
        if planes is None:
            windows, heads, _, head_dim = key.shape
            shape = (windows, heads, self._window_tokens, head_dim)
            planes = self._planes[layer] = (key.new_empty(shape), value.new_empty(shape))
        begin = self._tokens[layer]
        end = self._tokens[layer] = begin + key.shape[2]
        planes[0][:, :, begin:end], planes[1][:, :, begin:end] = key, value
        return planes[0][:, :, :end], planes[1][:, :, :end]


@torch.no_grad()
def write_windows(teacher: SliceModel, begin: Sequence[int], draws: np.ndarray, temperature: float) -> torch.Tensor:
    """[windows, tokens] i64, on the CPU.

    begin: the tokens that each window begins with. draws [windows, tokens] in [0, 1): a token is the first one up to
    which the predictions, in order of the ids, add up to more than its draw. temperature: divides the logits.
    """
    windows, window_tokens = draws.shape
    places = torch.from_numpy(draws).to(teacher.device, torch.float32)
    ids = torch.empty(windows, window_tokens, dtype=torch.int64, device=teacher.device)
    ids[:, : len(begin)] = torch.tensor(begin, device=teacher.device)
    cache = cast(Cache, _KeysAndValues(teacher.config.num_hidden_layers, window_tokens))
    new = ids[:, : len(begin)]
    for place in range(len(begin), window_tokens):
        mass = torch.softmax(teacher.next_logits(new, cache) / temperature, -1).cumsum(-1)
        new = torch.searchsorted(mass, places[:, place : place + 1] * mass[:, -1:], right=True)
        new.clamp_(max=mass.shape[-1] - 1)  # a draw that rounding puts beyond the last
        ids[:, place : place + 1] = new
    return ids.cpu()


class SampledWindows:
    """The windows that a slice writes, by their numbers: there is no end of them. One chunk is in memory."""

    def __init__(
        self, teacher: SliceModel, begin: Sequence[int], window_tokens: int, temperature: float, seed: int, stream: int
    ) -> None:
        """begin: as for write_windows. TrainingError if there are none, or if they leave no token to be written."""
        if not 0 < len(begin) < window_tokens:
            raise TrainingError(
                f"{teacher.source.directory}: {len(begin)} tokens begin a text of {window_tokens}: the slice can't "
                "write any; take --text with --sample-share 0"
            )
        self.window_tokens = window_tokens
        self._teacher, self._begin, self._temperature = teacher, list(begin), temperature
        self._seed, self._stream = seed, stream
        config = teacher.config
        window_bytes = 8 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * window_tokens
        self._chunk_windows = max(1, min(CHUNK_WINDOWS, CHUNK_BYTES // window_bytes))
        self._number = -1
        self._chunk = torch.zeros(0, window_tokens, dtype=torch.int64)

    def window(self, number: int) -> torch.Tensor:
        """[window_tokens] i64."""
        chunk, row = divmod(number, self._chunk_windows)
        if chunk != self._number:
            random = np.random.Generator(np.random.PCG64([self._seed, self._stream, chunk]))
            draws = random.random((self._chunk_windows, self.window_tokens), np.float32)
            self._chunk = write_windows(self._teacher, self._begin, draws, self._temperature)
            self._number = chunk
        return self._chunk[row]

    def batch(self, step: int, batch_windows: int) -> torch.Tensor:
        """[batch_windows, window_tokens] i64: those of a step, counted from 0."""
        return torch.stack([self.window(number) for number in range(step * batch_windows, (step + 1) * batch_windows)])

    def spread(self, at_most: int, batch_windows: int) -> list[torch.Tensor]:
        """The first so many windows, in batches, the last one maybe smaller."""
        return [
            torch.stack([self.window(number) for number in range(begin, min(begin + batch_windows, at_most))])
            for begin in range(0, at_most, batch_windows)
        ]
