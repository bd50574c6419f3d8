"""The windows of a text that a training step gets: a function of (seed, step), so that a position is one number."""

import math
from typing import Protocol

import numpy as np
import torch

from scion.training.errors import TrainingError


class Batches(Protocol):
    """What is trained on."""

    @property
    def window_tokens(self) -> int: ...

    def batch(self, step: int, batch_windows: int) -> torch.Tensor:
        """[batch_windows, window_tokens] i64: those of a step, counted from 0."""


class Numbered(Protocol):
    """Windows by number."""

    def window(self, number: int) -> torch.Tensor:
        """[window_tokens] i64."""


class HeldOut(Protocol):
    """What is measured on."""

    def spread(self, at_most: int, batch_windows: int) -> list[torch.Tensor]:
        """At most so many windows, always the same, in batches, the last one maybe smaller."""


class Mixture:
    """Windows of two kinds in turn, evenly: `share` of them, in [0, 1], are of the first kind."""

    def __init__(self, first: Numbered, second: Numbered, share: float, window_tokens: int) -> None:
        self._first, self._second, self._share, self.window_tokens = first, second, share, window_tokens

    def batch(self, step: int, batch_windows: int) -> torch.Tensor:
        return torch.stack([self._window(place) for place in range(step * batch_windows, (step + 1) * batch_windows)])

    def _window(self, place: int) -> torch.Tensor:
        before = math.floor(place * self._share)  # of the first kind
        is_first = math.floor((place + 1) * self._share) > before
        return self._first.window(before) if is_first else self._second.window(place - before)


class Windows:
    """A file of ids cut into windows of so many tokens; every epoch passes all of them, in an order of its own."""

    def __init__(self, ids: np.ndarray, window_tokens: int, seed: int) -> None:
        """TrainingError if the ids don't fill one window."""
        self.window_tokens = window_tokens
        self.count = len(ids) // window_tokens
        if self.count == 0:
            raise TrainingError(f"the text has {len(ids)} tokens; a window has {window_tokens}")
        self._ids = ids[: self.count * window_tokens].reshape(self.count, window_tokens)
        self._seed = seed
        self._epoch = -1
        self._order = np.zeros(0, np.int64)

    def batch(self, step: int, batch_windows: int) -> torch.Tensor:
        """[batch_windows, window_tokens] i64: those of a step, counted from 0."""
        return torch.stack([self.window(place) for place in range(step * batch_windows, (step + 1) * batch_windows)])

    def window(self, number: int) -> torch.Tensor:
        """[window_tokens] i64: the one that comes at this place, counted from 0 over all epochs."""
        epoch, index = divmod(number, self.count)
        if epoch != self._epoch:
            self._order = np.random.Generator(np.random.PCG64([self._seed, epoch])).permutation(self.count)
            self._epoch = epoch
        return torch.from_numpy(self._ids[self._order[index]].astype(np.int64))

    def spread(self, at_most: int, batch_windows: int) -> list[torch.Tensor]:
        """At most so many windows, evenly apart, always the same: batches as above, the last one maybe smaller."""
        chosen = np.unique(np.linspace(0, self.count - 1, min(at_most, self.count)).round().astype(np.int64))
        return [
            torch.from_numpy(self._ids[chosen[begin : begin + batch_windows]].astype(np.int64))
            for begin in range(0, len(chosen), batch_windows)
        ]
