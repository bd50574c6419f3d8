"""When a run ends, which weights it keeps, what its curve is."""

import pathlib
import xml.etree.ElementTree

import numpy as np
import pytest
import torch

from scion.training import curve, loop
from scion.training.errors import TrainingError
from scion.training.loop import Settings, train
from scion.training.progress import Progress, duration
from scion.training.windows import Windows

IDS = np.arange(40, dtype=np.uint32)


class Scripted:
    """Held-out losses as given; each step's gradient is that of a sum."""

    def __init__(self, held_out: list[float], loss: float = 1.0) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(4, 4))
        self._held_out, self._loss = iter(held_out), loss
        self.seen: list[list[int]] = []
        self.progress: list[float] = []
        self.at_evaluation: list[float] = []

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return {"weight": self.weight}

    def loss(self, ids: torch.Tensor, progress: float) -> torch.Tensor:
        self.seen += ids.tolist()
        self.progress.append(progress)
        return self.weight.sum() * 0 + (self.weight * torch.eye(4)).sum() * 0.1 + self._loss

    def held_out_loss(self, ids: torch.Tensor) -> torch.Tensor:
        self.at_evaluation.append(float(self.weight.detach().sum()))
        return torch.full((len(ids),), next(self._held_out), dtype=torch.float64)


def run(task: Scripted, folder: pathlib.Path, **settings: object) -> loop.Result:
    defaults = {
        "steps": 10,
        "minutes": None,
        "batch_windows": 2,
        "learning_rate": 0.1,
        "evaluations": 5,
        "held_out_windows": 2,
    }
    windows = Windows(IDS, 4, seed=1)
    return train(task, windows, windows, Settings(**defaults | settings), folder, {}, Progress("test"), False)


def test_the_best_evaluations_weights_are_kept(tmp_path: pathlib.Path) -> None:
    task = Scripted([5.0, 4.0, 3.0, 3.5, 3.4, 3.2])
    result = run(task, tmp_path)
    assert [point.step for point in result.state.points] == [0, 2, 4, 6, 8, 10]
    assert (result.state.best_loss, result.state.best_step, result.reason) == (3.0, 4, "the end of the run")
    assert float(task.weight.detach().sum()) == task.at_evaluation[2] != task.at_evaluation[-1]
    assert task.progress == [step / 10 for step in range(10)]


def test_it_ends_early_without_a_gain(tmp_path: pathlib.Path) -> None:
    losses = [5.0, 4.0, 4.0, 3.9995, 4.1, 1.0]
    result = run(Scripted(losses), tmp_path, patience=3)
    assert result.state.points[-1].step == 8 and "no gain" in result.reason
    assert result.state.best_loss == 3.9995  # kept, though too small a gain to go on for
    assert run(Scripted(losses), tmp_path, patience=0).state.best_loss == 1.0


def test_the_clock_ends_it_with_one_evaluation_per_share_passed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("scion.training.loop.time.monotonic", lambda: now[0])
    task = Scripted([5.0 - number for number in range(5)])

    def loss(ids: torch.Tensor, progress: float) -> torch.Tensor:
        now[0] += 20.0  # seconds; a third of the run each
        return Scripted.loss(task, ids, progress)

    monkeypatch.setattr(task, "loss", loss)
    result = run(task, tmp_path, steps=None, minutes=1.0, evaluations=20)
    assert [point.step for point in result.state.points] == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_it(tmp_path: pathlib.Path, bad: float) -> None:
    with pytest.raises(TrainingError, match="the loss is .* at step 0"):
        run(Scripted([5.0] * 9, loss=bad), tmp_path)
    with pytest.raises(TrainingError, match="the held-out loss is .* at step 2"):
        run(Scripted([5.0, bad]), tmp_path)


def test_every_epoch_passes_every_window_once_in_another_order(tmp_path: pathlib.Path) -> None:
    task = Scripted([5.0] * 9)
    run(task, tmp_path, steps=15, patience=0)  # 10 windows, 2 a step: three epochs
    epochs = [task.seen[begin : begin + 10] for begin in (0, 10, 20)]
    for epoch in epochs:
        assert sorted(epoch) == IDS.reshape(10, 4).tolist()
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_windows_spread_over_the_text() -> None:
    windows = Windows(IDS, 4, seed=1)
    assert torch.cat(windows.spread(3, 2))[:, 0].tolist() == [0, 16, 36]
    assert len(torch.cat(windows.spread(100, 3))) == 10
    with pytest.raises(TrainingError, match="40 tokens; a window has 41"):
        Windows(IDS, 41, seed=1)


def test_csv_and_svg() -> None:
    points = [curve.Point(0, 0, 0.0, None, 5.25), curve.Point(100, 25600, 9.96, 4.5, 4.0)]
    assert curve.csv(points) == (
        "step,tokens,seconds,train_loss,held_out_loss\n0,0,0.0,,5.25\n100,25600,10.0,4.5,4.0\n"
    )
    for some in (points, points[:1]):
        root = xml.etree.ElementTree.fromstring(curve.svg(some, "fr, from best"))
        words = "".join(root.itertext())
        assert root.tag.endswith("svg") and "fr, from best" in words and "held out" in words
    path = root.findall(".//{*}path")
    assert len(path) >= 2


def test_durations() -> None:
    assert [duration(seconds) for seconds in (-1, 59.9, 61, 3600)] == [
        "0 min 00 s",
        "0 min 59 s",
        "1 min 01 s",
        "1 h 00 min",
    ]
