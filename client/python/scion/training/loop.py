"""The training loop: batches in order, a learning rate by a schedule, a curve, checkpoints, an early stop.

The run is a function of (parameters, text, seed, settings) and the step: whoever goes on from a checkpoint gets the
same bits as whoever was not stopped, on the same machine with as many threads, where the length is given in steps.
(With `minutes` the learning rate follows the clock.)
"""

import copy
import dataclasses
import math
import pathlib
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import torch

from scion.training import checkpoint
from scion.training.atomic import write_text_atomically
from scion.training.curve import Point, csv
from scion.training.errors import TrainingError
from scion.training.optimizer import Optimizer
from scion.training.progress import Progress, duration
from scion.training.windows import Batches, HeldOut

DECAY_FROM = 0.2  # of the run: the learning rate goes down in a line from there
LEAST_RATE = 0.01  # of the learning rate, at the end
LEAST_GAIN = 1e-3  # nats on the held-out text that count as one, for the early stop


class Task(Protocol):
    """What is trained: parameters by name, in fp32, and the losses of a batch of windows [windows, tokens] of ids."""

    def parameters(self) -> dict[str, torch.nn.Parameter]: ...

    def loss(self, ids: torch.Tensor, progress: float) -> torch.Tensor:
        """The mean over what is predicted, to go down. progress: how much of the run is over, 0 to 1."""

    def held_out_loss(self, ids: torch.Tensor) -> torch.Tensor:
        """[windows], nats per token; called without gradients."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """steps, minutes: the run ends when either is over; at least one is given. patience: evaluations without a gain
    after which it ends early; 0: never."""

    steps: int | None
    minutes: float | None
    batch_windows: int
    learning_rate: float
    warm_up_steps: int = 20
    evaluations: int = 20
    held_out_windows: int = 64
    patience: int = 5
    checkpoint_seconds: float = 60.0
    seed: int = 1


@dataclasses.dataclass
class State:
    """Where a run is, beside its parameters and the optimiser's memory."""

    step: int = 0
    seconds: float = 0.0  # of training before this process
    loss_sum: float = 0.0  # of the steps since the last point of the curve
    loss_steps: int = 0
    evaluation: int = 0  # the number of the next one: due at that share of the run
    stale: int = 0  # evaluations since the last gain
    best_loss: float = math.inf
    best_step: int = 0
    points: list[Point] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Result:
    """The parameters of the best evaluation are in place. reason: why the run ended."""

    state: State
    reason: str


class Interrupted(TrainingError):
    """A signal asked to end; a checkpoint is written."""


def train(
    task: Task,
    train: Batches,
    held_out: HeldOut,
    settings: Settings,
    folder: pathlib.Path,
    fingerprint: dict[str, Any],
    progress: Progress,
    resume: bool,
) -> Result:
    """Trains until the end of the run. Checkpoints and curve.csv are kept in `folder`.

    resume: goes on from the checkpoint in `folder`; TrainingError if there is none, or if it is another run's by its
    fingerprint. Interrupted after SIGINT or SIGTERM. TrainingError if a loss is no number.
    """
    return _Run(task, train, held_out, settings, folder, fingerprint, progress).run(resume)


class _Run:
    def __init__(
        self,
        task: Task,
        train: Batches,
        held_out: HeldOut,
        settings: Settings,
        folder: pathlib.Path,
        fingerprint: dict[str, Any],
        progress: Progress,
    ) -> None:
        self._task, self._train, self._settings, self._folder = task, train, settings, folder
        self._fingerprint, self._progress = fingerprint, progress
        self._held_out = held_out.spread(settings.held_out_windows, settings.batch_windows)
        self._parameters = task.parameters()
        self._optimizer = Optimizer(self._parameters, settings.learning_rate)
        self._state = State()
        self._best = self._copy()
        self._began = time.monotonic()
        self._saved = self._began
        self._stop = False

    def run(self, resume: bool) -> Result:
        if resume:
            self._load()
        with _signals(self._on_signal):
            reason = self._loop()
        for name, parameter in self._parameters.items():
            parameter.data.copy_(self._best[name])
        return Result(self._state, reason)

    def _loop(self) -> str:
        state, settings = self._state, self._settings
        if not state.points:
            self._evaluate()
        while True:
            done = self._done()
            if int(done * settings.evaluations) >= state.evaluation or done >= 1:
                if state.points[-1].step < state.step:
                    self._evaluate()
                    if settings.patience and state.stale >= settings.patience:
                        return f"no gain on the held-out text in {state.stale} evaluations"
                if done >= 1:
                    return "the end of the run"
            if self._stop:
                self._save()
                raise Interrupted(f"interrupted at step {state.step}; --resume goes on from there")
            if time.monotonic() - self._saved > settings.checkpoint_seconds:
                self._save()
            self._step(done)

    def _step(self, done: float) -> None:
        state, settings = self._state, self._settings
        loss = self._task.loss(self._train.batch(state.step, settings.batch_windows), done)
        loss.backward()
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(f"the loss is {value} at step {state.step}: try a lower --learning-rate")
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), 1.0)
        warm_up = min(1.0, (state.step + 1) / settings.warm_up_steps)
        self._optimizer.step(warm_up * max(LEAST_RATE, min(1.0, (1 - done) / (1 - DECAY_FROM))))
        self._optimizer.zero_grad()
        state.step += 1
        state.loss_sum += value
        state.loss_steps += 1
        self._show(value)

    @torch.no_grad()
    def _evaluate(self) -> None:
        state = self._state
        losses = torch.cat([self._task.held_out_loss(ids).double().cpu() for ids in self._held_out])
        held_out = float(losses.mean())
        if not math.isfinite(held_out):
            raise TrainingError(f"the held-out loss is {held_out} at step {state.step}")
        train_loss = state.loss_sum / state.loss_steps if state.loss_steps else None
        state.points.append(Point(state.step, self._tokens(), self._seconds(), train_loss, held_out))
        state.loss_sum, state.loss_steps = 0.0, 0
        state.evaluation = int(self._done() * self._settings.evaluations) + 1
        state.stale = 0 if held_out < state.best_loss - LEAST_GAIN else state.stale + 1
        if held_out < state.best_loss:
            state.best_loss, state.best_step = held_out, state.step
            self._best = self._copy()
        trained = "" if train_loss is None else f", training {train_loss:.4f}"
        self._progress.say(f"step {state.step}: held out {held_out:.4f}{trained}")
        write_text_atomically(self._folder / "curve.csv", csv(state.points))
        self._save()

    def _show(self, loss: float) -> None:
        state, seconds = self._state, self._seconds()
        done = max(self._done(), 1e-9)
        of = f" of {self._settings.steps}" if self._settings.steps else ""
        self._progress.show(
            f"{min(done, 1):4.0%} step {state.step}{of}, loss {loss:.3f}, held out "
            f"{state.points[-1].held_out_loss:.3f}, {self._tokens() / max(seconds, 1e-9):.0f} tokens/s, "
            f"{duration(seconds / done - seconds)} left"
        )

    def _tokens(self) -> int:
        return self._state.step * self._settings.batch_windows * self._train.window_tokens

    def _seconds(self) -> float:
        return self._state.seconds + time.monotonic() - self._began

    def _done(self) -> float:
        settings = self._settings
        by_steps = self._state.step / settings.steps if settings.steps is not None else 0.0
        by_clock = self._seconds() / (60 * settings.minutes) if settings.minutes is not None else 0.0
        return max(by_steps, by_clock)

    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def _save(self) -> None:
        state = dataclasses.asdict(self._state) | {"seconds": self._seconds()}
        checkpoint.save(
            self._folder,
            {
                "fingerprint": self._fingerprint,
                "state": state,
                "best": self._best,
                "parameters": {name: parameter.detach() for name, parameter in self._parameters.items()},
                "optimizer": self._optimizer.state_dict(),
                "random": torch.get_rng_state(),
            },
        )
        self._saved = time.monotonic()

    def _load(self) -> None:
        loaded = checkpoint.load(self._folder, self._fingerprint)
        state = copy.deepcopy(loaded["state"])
        self._state = State(**state | {"points": [Point(**point) for point in state["points"]]})
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(loaded["parameters"][name])
                self._best[name].copy_(loaded["best"][name])
        self._optimizer.load_state_dict(loaded["optimizer"])
        torch.set_rng_state(loaded["random"])
        self._began = self._saved = time.monotonic()
        self._progress.say(f"goes on from step {self._state.step}")


class _signals:
    """SIGINT and SIGTERM call a handler, as long as the context lasts."""

    def __init__(self, handler: Callable[[int, FrameType | None], None]) -> None:
        self._handler = handler
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handler)

    def __exit__(self, *unused: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
