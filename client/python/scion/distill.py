"""python -m scion.distill: trains the folded FFNs of a dense fold to follow the slice that it was made of.

    moe-extract densify deploy/demo --domain cpp --width 1 --calibration cpp.txt -o fold
    python -m scion.distill fold --teacher deploy/demo@cpp --steps 640 -o better                 # needs no text
    python -m scion.distill fold --teacher deploy/demo@cpp --text texts/ --minutes 20 -o better

The fold sees text that the slice itself writes, and of --text, if given, the part that --sample-share leaves. The loss
is the KL divergence of the fold's predictions from the slice's, towards the end mixed with the text's next tokens
(--text-share). Embedding, attention, norms, head and the FFNs that were never folded stay as they are, which is proven
by their hashes. OUT is the same directory with other numbers in those FFNs; the record and the loss curve are in
OUT/training.
"""

import argparse
import math
import pathlib
import sys
import time
from collections.abc import Iterable

import torch

from scion import __version__
from scion.training import frozen
from scion.training.donor import find_program, lock
from scion.training.errors import TrainingError
from scion.training.fold import Fold
from scion.training.follow import losses_to
from scion.training.loop import train
from scion.training.options import (
    add_arguments,
    device_of,
    fingerprint_of,
    positive,
    run_program,
    settings_of,
    window_of,
)
from scion.training.prepared_text import PreparedText, prepare
from scion.training.progress import Progress
from scion.training.record import figures, publish
from scion.training.sampled_text import HELD_OUT, TRAINING, SampledWindows
from scion.training.slice_model import SliceModel
from scion.training.source import Source
from scion.training.windows import Batches, HeldOut, Mixture
from scion.training.workspace import Workspace

LEARNING_RATE = 0.02
SAMPLE_SHARE = 0.7  # where there is a text
TEXT_FROM = 0.7  # of the run: from there on, the text's own tokens count too


class Distillation:
    """The task of the loop: the fold's folded FFNs, by what the slice says."""

    def __init__(self, fold: Fold, teacher: SliceModel, text_share: float, dtype: torch.dtype) -> None:
        self._fold, self._teacher, self._text_share, self._dtype = fold, teacher, text_share, dtype

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self._fold.parameters()

    def loss(self, ids: torch.Tensor, progress: float) -> torch.Tensor:
        return self._losses(ids, self._text_share if progress >= TEXT_FROM else 0.0).mean()

    def held_out_loss(self, ids: torch.Tensor) -> torch.Tensor:
        return self._losses(ids, self._text_share).mean(1)

    def _losses(self, ids: torch.Tensor, text_share: float) -> torch.Tensor:
        """[windows, tokens]."""
        ids = ids.to(self._fold.device)
        with torch.no_grad():
            target = self._teacher.hidden(ids)
        fold, teacher = self._fold, self._teacher
        return losses_to(fold.hidden(ids), fold.head, target, teacher.head, ids, text_share, self._dtype)

    @torch.no_grad()
    def perplexity(self, batches: Iterable[torch.Tensor]) -> float:
        """The fold's, over all tokens but a window's first."""
        losses = [self._losses(ids, 1.0)[:, :-1].double() for ids in batches]
        return math.exp(float(torch.cat([loss.flatten() for loss in losses]).mean()))


def parse_teacher(text: str) -> tuple[pathlib.Path, str]:
    model, at, domain = text.rpartition("@")
    if not at or not model or not domain:
        raise TrainingError(f"--teacher {text}: MODEL@DOMAIN is asked for")
    return pathlib.Path(model), domain


def check_pair(fold: Fold, source: Source) -> None:
    """TrainingError if the fold can't have been made of the model."""
    for what, ours, theirs in (
        ("vocab_size", fold.vocab_size, source.config.vocab_size),
        ("num_hidden_layers", fold.model.config.num_hidden_layers, source.config.num_hidden_layers),
    ):
        if ours != theirs:
            raise TrainingError(f"{fold.directory}: {what} is {ours}; the teacher's is {theirs}")
    for directory in (fold.directory, source.directory):
        if not (directory / "tokenizer.json").is_file():
            raise TrainingError(f"{directory}/tokenizer.json: no such file")
    if (fold.directory / "tokenizer.json").read_bytes() != (source.directory / "tokenizer.json").read_bytes():
        raise TrainingError(f"{fold.directory}/tokenizer.json is not the teacher's: another vocabulary")


def windows_of(
    arguments: argparse.Namespace, teacher: SliceModel, text: PreparedText | None, window: int
) -> tuple[Batches, HeldOut]:
    """What is trained on and what is measured on."""
    _, begin, end = teacher.source.encoder()
    if not begin and end is not None:
        begin = [end]  # what comes after the end of a text is the begin of one

    def sampled(stream: int) -> SampledWindows:
        return SampledWindows(teacher, begin, window, arguments.temperature, arguments.seed, stream)

    if text is None:
        return sampled(TRAINING), sampled(HELD_OUT)
    if arguments.sample_share == 0:
        return text.train, text.held_out
    return Mixture(sampled(TRAINING), text.train, arguments.sample_share, window), text.held_out


def check_shares(arguments: argparse.Namespace) -> None:
    if arguments.sample_share is None:
        arguments.sample_share = 1.0 if arguments.text is None else SAMPLE_SHARE
    for option, share in (("--sample-share", arguments.sample_share), ("--text-share", arguments.text_share)):
        if not 0 <= share <= 1:
            raise TrainingError(f"{option} {share}: outside [0, 1]")
    if arguments.text is None and (arguments.sample_share < 1 or arguments.held_out is not None):
        raise TrainingError("--sample-share below 1 and --held-out need --text")


def distill(arguments: argparse.Namespace) -> None:
    check_shares(arguments)
    model, domain = parse_teacher(arguments.teacher)
    source = Source(model)
    if domain not in source.domains:
        raise TrainingError(f"--teacher {arguments.teacher}: no such domain; there are: {', '.join(source.domains)}")
    device, settings, program = device_of(arguments), settings_of(arguments), find_program(arguments.moe_extract)
    autocast = arguments.precision == "bf16"
    fold = Fold(arguments.fold, source.config.sparse_layers, device, autocast)
    check_pair(fold, source)
    window = window_of(arguments, min(fold.context_tokens, source.config.max_position_embeddings))
    progress, began = Progress("distill"), time.monotonic()
    before = fold.hashes()
    with Workspace(arguments.out, arguments.resume) as workspace:
        text = None
        if arguments.text is not None:
            text = prepare(
                workspace,
                arguments.text,
                arguments.held_out,
                source.encoder(),
                fold.vocab_size,
                window,
                arguments.max_tokens,
                arguments.seed,
                progress,
            )
        teacher = SliceModel(source, domain, source.domains[domain], device, autocast)
        teacher.load_domain(domain)
        train_windows, held_out = windows_of(arguments, teacher, text, window)
        task = Distillation(fold, teacher, arguments.text_share, torch.bfloat16 if autocast else torch.float32)
        measured = held_out.spread(settings.held_out_windows, settings.batch_windows)
        with torch.no_grad():
            aim = math.exp(float(torch.cat([teacher.losses(ids).double() for ids in measured]).mean()))
        at_start = task.perplexity(measured)
        progress.say(
            f"{_of(text, arguments.sample_share)}; held out, the slice has perplexity {aim:.2f}, the fold {at_start:.2f}"
        )
        in_memory = fold.frozen_hashes()
        fingerprint = fingerprint_of(arguments, settings, text, window) | {
            "fold": frozen.digest_of(before),
            "teacher": frozen.digest_of(source.hashes()),
            "domain": domain,
            "sample share": arguments.sample_share,
            "temperature": arguments.temperature,
            "text share": arguments.text_share,
        }
        result = train(
            task, train_windows, held_out, settings, workspace.folder, fingerprint, progress, arguments.resume
        )
        at_end = task.perplexity(measured)
        frozen.check_same("what is not folded, in memory,", in_memory, fold.frozen_hashes())
        folder = workspace.directory()
        fold.write(folder)
        after = {name: digest for file in fold.files for name, digest in frozen.file_hashes(folder / file).items()}
        kept = [name for name in before if name not in fold.parameters()]
        frozen.check_same(
            "the written trunk", {name: before[name] for name in kept}, {name: after[name] for name in kept}
        )
        lock(folder, program, arguments.fold / "scion.lock.json")
        record = {
            "program": f"scion.distill {__version__}",
            "teacher": f"{model.name}@{domain}",
            "text": None if text is None else text.notes,
            "settings": fingerprint,
            "held_out_perplexity": {"slice": aim, "fold_at_start": at_start, "fold": at_end},
            "result": figures(result),
            "frozen": {"before": {name: before[name] for name in kept}, "after": {name: after[name] for name in kept}},
        }
        publish(folder, arguments.out, record, result, f"{arguments.fold.name}, after {domain}")
        workspace.finish()
    state = result.state
    progress.say(
        f"{arguments.out}: held-out loss {state.best_loss:.4f} (step {state.best_step}; at the start "
        f"{state.points[0].held_out_loss:.4f}), perplexity {at_end / aim:.3f} x the slice's (at the start "
        f"{at_start / aim:.3f}); ended by {result.reason}; {time.monotonic() - began:.0f} s in all; every other tensor "
        "is as it was"
    )
    if program is None:
        progress.say(
            f"no moe-extract on the PATH, hence no lock, which verify asks for: cp {arguments.fold}/scion.lock.json "
            f"{arguments.out} && moe-extract lock {arguments.out} --replace"
        )


def _of(text: PreparedText | None, sample_share: float) -> str:
    if text is None:
        return "text that the slice writes"
    return (
        f"{sample_share:.0%} text that the slice writes; {text.notes['train_tokens']} tokens of text to train on, "
        f"{text.notes['held_out_tokens']} held out"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scion.distill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fold", type=pathlib.Path, help="a directory that moe-extract densify wrote")
    parser.add_argument("--teacher", required=True, metavar="MODEL@DOMAIN", help="what the fold was made of")
    parser.add_argument("-o", "--out", type=pathlib.Path, required=True, help="the directory to be written")
    parser.add_argument(
        "--sample-share",
        type=float,
        help=f"of the training windows, written by the slice itself (default: 1; with --text {SAMPLE_SHARE})",
    )
    parser.add_argument(
        "--temperature",
        type=positive(float),
        default=1.0,
        help="at which the slice writes; 1: as it predicts (default: %(default)s)",
    )
    parser.add_argument(
        "--text-share",
        type=float,
        default=0.0,
        help=f"of the loss, by the text's own tokens, in the last {100 * (1 - TEXT_FROM):.0f}%% of the run "
        "(default: %(default)s)",
    )
    add_arguments(parser, LEARNING_RATE, needs_text=False)
    # The rate first drives a good fold away from its slice, and brings it back while it falls.
    parser.set_defaults(patience=0)
    arguments = parser.parse_args(argv)
    return run_program("distill", lambda: distill(arguments))


if __name__ == "__main__":
    sys.exit(main())
