"""The command-line arguments that trainings share, and how a program ends on an error."""

import argparse
import errno
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import torch

from scion.training.errors import TrainingError
from scion.training.loop import Interrupted, Settings
from scion.training.prepared_text import PreparedText

DEFAULT_MINUTES = 10.0


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text}: not above 0")
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def add_arguments(parser: argparse.ArgumentParser, learning_rate: float, needs_text: bool = True) -> None:
    text = parser.add_argument_group("text")
    text.add_argument(
        "--text",
        type=pathlib.Path,
        required=needs_text,
        help='a file or a folder of them: UTF-8, or .jsonl with a member "text" per line',
    )
    text.add_argument(
        "--held-out",
        type=pathlib.Path,
        help="another text, for the held-out loss (default: one piece of 64 KiB in twenty of --text)",
    )
    text.add_argument(
        "--window", type=positive(int), help="tokens of a training window (default: the context, at most 1024)"
    )
    text.add_argument(
        "--max-tokens",
        type=positive(int),
        default=100_000_000,
        help="of the text; what comes after is not read (default: %(default)s)",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--steps", type=positive(int), help="ends after so many; the same bits again when resumed")
    run.add_argument(
        "--minutes", type=positive(float), help=f"ends then (default: {DEFAULT_MINUTES:g}, without --steps)"
    )
    run.add_argument("--batch", type=positive(int), default=16, help="windows per step (default: %(default)s)")
    run.add_argument("--learning-rate", type=positive(float), default=learning_rate, help="default: %(default)s")
    run.add_argument(
        "--evaluations", type=positive(int), default=20, help="of the held-out loss (default: %(default)s)"
    )
    run.add_argument(
        "--held-out-windows",
        type=positive(int),
        default=64,
        help="of the held-out text, evenly apart (default: %(default)s)",
    )
    run.add_argument(
        "--patience",
        type=int,
        default=5,
        help="evaluations without a gain after which it ends early; 0: never (default: %(default)s)",
    )
    run.add_argument("--checkpoint-seconds", type=positive(float), default=60.0, help="default: %(default)s")
    run.add_argument("--seed", type=int, default=1, help="of everything random (default: %(default)s)")
    run.add_argument("--resume", action="store_true", help="goes on from the checkpoint of a run that was stopped")
    run.add_argument("--device", default="auto", help="cpu, cuda, or auto (default)")
    run.add_argument("--threads", type=positive(int), help="of the CPU (default: all)")
    run.add_argument(
        "--moe-extract", metavar="PROGRAM", help="which writes OUT's lock (default: from the PATH, if it is there)"
    )
    run.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="bf16",
        help="of products in training; weights are fp32 either way (default: %(default)s)",
    )


def fingerprint_of(
    arguments: argparse.Namespace, settings: Settings, text: PreparedText | None, window: int
) -> dict[str, Any]:
    """What must be the same for a run to be resumed; goes into the record, too."""
    return {
        "text": None if text is None else text.notes["ids_sha256"],
        "window": window,
        "batch": settings.batch_windows,
        "steps": settings.steps,
        "minutes": settings.minutes,
        "learning rate": settings.learning_rate,
        "evaluations": settings.evaluations,
        "held-out windows": settings.held_out_windows,
        "patience": settings.patience,
        "seed": settings.seed,
        "precision": arguments.precision,
    }


def settings_of(arguments: argparse.Namespace) -> Settings:
    minutes = arguments.minutes
    if minutes is None and arguments.steps is None:
        minutes = DEFAULT_MINUTES
    return Settings(
        arguments.steps,
        minutes,
        arguments.batch,
        arguments.learning_rate,
        evaluations=arguments.evaluations,
        held_out_windows=arguments.held_out_windows,
        patience=arguments.patience,
        checkpoint_seconds=arguments.checkpoint_seconds,
        seed=arguments.seed,
    )


def device_of(arguments: argparse.Namespace) -> torch.device:
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    name = arguments.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def window_of(arguments: argparse.Namespace, context_tokens: int) -> int:
    window = arguments.window or min(context_tokens, 1024)
    if not 2 <= window <= context_tokens:
        raise TrainingError(f"--window {window}: outside [2, {context_tokens}], the model's context")
    return window


def run_program(name: str, run: Callable[[], None]) -> int:
    """The process's exit code: 0 done, 1 failed (said in a line), 130 stopped by a signal, resumable."""
    try:
        run()
        return 0
    except Interrupted as error:
        message, code = str(error), 130
    except TrainingError as error:
        message, code = str(error), 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = "no space left on the disk" if error.errno == errno.ENOSPC else os.strerror(error.errno or 0)
        message, code = f"{where}{reason}", 1
    except torch.OutOfMemoryError:
        message, code = "not enough memory on the device: try a smaller --batch or --window", 1
    print(f"{name}: {message}", file=sys.stderr)
    return code
