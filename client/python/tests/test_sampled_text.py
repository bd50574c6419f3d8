"""What a slice writes is what it predicts, and the same text whoever asks for it and when."""

import pathlib

import numpy as np
import pytest
import torch

import tiny_model
from scion.training import sampled_text
from scion.training.errors import TrainingError
from scion.training.sampled_text import HELD_OUT, TRAINING, SampledWindows, write_windows
from scion.training.slice_model import SliceModel
from scion.training.source import Source
from scion.training.windows import Mixture
from training_fixtures import model  # noqa: F401

END = 259


@pytest.fixture
def teacher(model: pathlib.Path) -> SliceModel:
    slice_model = SliceModel(Source(model), "aa", 3, torch.device("cpu"), autocast=False)
    slice_model.load_domain("aa")
    return slice_model


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_each_token_is_drawn_from_what_the_slice_predicts(teacher: SliceModel, temperature: float) -> None:
    """The text once more, token by token, without a cache and in float64."""
    draws = np.random.default_rng(5).random((6, 20), np.float32)
    given = write_windows(teacher, [END, 7], draws, temperature)
    assert given.shape == (6, 20) and given.dtype == torch.int64
    for row, row_draws in zip(given.tolist(), draws.astype(np.float64)):
        expected = [END, 7]
        for place in range(2, 20):
            with torch.no_grad():
                logits = teacher.logits(torch.tensor([expected]))[0, -1].double().numpy() / temperature
            mass = np.exp(logits - logits.max())
            upto = np.cumsum(mass / mass.sum())
            expected.append(int(np.argmax(upto > row_draws[place])))
        assert row == expected
    assert len({tuple(row) for row in given.tolist()}) == 6


def test_a_draw_that_rounding_puts_beyond_the_last_token_is_that_token(teacher: SliceModel) -> None:
    given = write_windows(teacher, [END], np.ones((2, 8), np.float32), 1.0)
    assert given[:, 1:].unique().tolist() == [tiny_model.VOCAB - 1]


def test_a_window_is_a_function_of_seed_stream_and_number(teacher: SliceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled_text, "CHUNK_WINDOWS", 4)

    def windows(seed: int = 1, stream: int = TRAINING) -> SampledWindows:
        return SampledWindows(teacher, [END], 16, 1.0, seed, stream)

    in_order = windows()
    first = [in_order.window(number) for number in range(12)]
    assert torch.equal(torch.stack(first[5:10]), windows().batch(1, 5)), "from the middle of a chunk on"
    assert torch.equal(windows().window(11), first[11])
    assert [tuple(batch.shape) for batch in in_order.spread(5, 2)] == [(2, 16), (2, 16), (1, 16)]
    assert torch.equal(torch.cat(windows().spread(5, 2)), torch.stack(first[:5]))
    everything = {
        tuple(window.tolist())
        for source in (in_order, windows(seed=2), windows(stream=HELD_OUT))
        for window in (source.window(number) for number in range(12))
    }
    assert len(everything) == 36, "no window twice, neither in a stream nor in another one"


def test_a_chunk_has_a_limit_in_bytes(teacher: SliceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    write = write_windows

    def counting(teacher: SliceModel, begin: list[int], draws: np.ndarray, temperature: float) -> torch.Tensor:
        sizes.append(len(draws))
        return write(teacher, begin, draws, temperature)

    monkeypatch.setattr(sampled_text, "write_windows", counting)
    config = teacher.config
    window_bytes = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 16
    for limit, windows in ((3 * window_bytes + 1, 3), (1, 1), (1 << 30, sampled_text.CHUNK_WINDOWS)):
        monkeypatch.setattr(sampled_text, "CHUNK_BYTES", limit)
        SampledWindows(teacher, [END], 16, 1.0, 1, TRAINING).window(0)
        assert sizes.pop() == windows


def test_a_text_that_cannot_begin_is_refused(teacher: SliceModel) -> None:
    for begin in ([], [END] * 16):
        with pytest.raises(TrainingError, match="the slice can't write any"):
            SampledWindows(teacher, begin, 16, 1.0, 1, TRAINING)


class Numbers:
    """Window number n of the kind k is [k, n]."""

    def __init__(self, kind: int) -> None:
        self._kind = kind

    def window(self, number: int) -> torch.Tensor:
        return torch.tensor([self._kind, number])


@pytest.mark.parametrize("share, firsts", [(0.7, 7), (0.0, 0), (1.0, 10), (0.25, 2)])
def test_a_mixture_takes_the_windows_of_each_kind_in_turn(share: float, firsts: int) -> None:
    mixture = Mixture(Numbers(1), Numbers(2), share, 2)
    given = [*mixture.batch(0, 5).tolist(), *mixture.batch(1, 5).tolist()]
    for kind, count in ((1, firsts), (2, 10 - firsts)):
        assert [number for of, number in given if of == kind] == list(range(count))
    # Evenly: nowhere more than one window away from the share.
    for end in range(1, 11):
        assert abs(sum(kind == 1 for kind, _ in given[:end]) - share * end) < 1 + 1e-9
