"""python -m scion.distill: trains the folded FFNs of a dense fold to follow the slice that it was made of.

    moe-extract densify deploy/demo --domain cpp --width 2 --calibration cpp.txt -o fold
    python -m scion.distill fold --teacher deploy/demo@cpp --text texts/ -o better

The loss is the KL divergence of the fold's predictions from the slice's, towards the end mixed with the text's own next
tokens (--text-share). Embedding, attention, norms, head and the FFNs that were never folded stay as they are, which is
proven by their hashes. OUT is the same directory with other numbers in those FFNs; the record and the loss curve are in
OUT/training.
"""

import argparse
import pathlib
import sys
import time

import torch
import torch.nn.functional as F

from scion import __version__
from scion.training import frozen
from scion.training.donor import find_program, lock
from scion.training.errors import TrainingError
from scion.training.fold import Fold
from scion.training.loop import train
from scion.training.options import add_arguments, device_of, fingerprint_of, run_program, settings_of, window_of
from scion.training.prepared_text import prepare
from scion.training.progress import Progress
from scion.training.record import figures, publish
from scion.training.slice_model import SliceModel, next_token_losses
from scion.training.source import Source
from scion.training.workspace import Workspace

LEARNING_RATE = 0.01
TEXT_FROM = 0.7  # of the run: from there on, the text's own tokens count too


class Distillation:
    """The task of the loop: the fold's folded FFNs, by what the slice says."""

    def __init__(self, fold: Fold, teacher: SliceModel, text_share: float) -> None:
        self._fold, self._teacher, self._text_share = fold, teacher, text_share

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self._fold.parameters()

    def loss(self, ids: torch.Tensor, progress: float) -> torch.Tensor:
        logits = self._fold.logits(ids)
        with torch.no_grad():
            target = torch.log_softmax(self._teacher.logits(ids), -1)
        divergence = F.kl_div(
            torch.log_softmax(logits, -1).flatten(0, 1), target.flatten(0, 1), log_target=True, reduction="batchmean"
        )
        share = self._text_share if progress >= TEXT_FROM else 0.0
        if share == 0:
            return divergence
        return (1 - share) * divergence + share * next_token_losses(logits, ids.to(logits.device)).mean()

    def held_out_loss(self, ids: torch.Tensor) -> torch.Tensor:
        return next_token_losses(self._fold.logits(ids), ids.to(self._fold.device))


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


def distill(arguments: argparse.Namespace) -> None:
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
        with torch.no_grad():
            held_out = text.held_out.spread(settings.held_out_windows, settings.batch_windows)
            aim = float(torch.cat([teacher.losses(ids).double() for ids in held_out]).mean())
        progress.say(
            f"{text.notes['train_tokens']} tokens to train on, {text.notes['held_out_tokens']} held out; the "
            f"slice's loss on these is {aim:.4f}"
        )
        in_memory = fold.frozen_hashes()
        fingerprint = fingerprint_of(arguments, settings, text, window) | {
            "fold": frozen.digest_of(before),
            "teacher": frozen.digest_of(source.hashes()),
            "domain": domain,
            "text share": arguments.text_share,
        }
        result = train(
            Distillation(fold, teacher, arguments.text_share),
            text.train,
            text.held_out,
            settings,
            workspace.folder,
            fingerprint,
            progress,
            arguments.resume,
        )
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
            "text": text.notes,
            "settings": fingerprint,
            "teacher_held_out_loss": aim,
            "result": figures(result),
            "frozen": {"before": {name: before[name] for name in kept}, "after": {name: after[name] for name in kept}},
        }
        publish(folder, arguments.out, record, result, f"{arguments.fold.name}, after {domain}")
        workspace.finish()
    state = result.state
    progress.say(
        f"{arguments.out}: held-out loss {state.best_loss:.4f} (step {state.best_step}; at the start "
        f"{state.points[0].held_out_loss:.4f}, the slice's {aim:.4f}); ended by {result.reason}; "
        f"{time.monotonic() - began:.0f} s in all; every other tensor is as it was"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scion.distill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fold", type=pathlib.Path, help="a directory that moe-extract densify wrote")
    parser.add_argument("--teacher", required=True, metavar="MODEL@DOMAIN", help="what the fold was made of")
    parser.add_argument("-o", "--out", type=pathlib.Path, required=True, help="the directory to be written")
    parser.add_argument(
        "--text-share",
        type=float,
        default=0.0,
        help=f"of the loss, by the text's own tokens, in the last {1 - TEXT_FROM:.0%}%% of the run "
        "(default: %(default)s)",
    )
    add_arguments(parser, LEARNING_RATE)
    arguments = parser.parse_args(argv)
    return run_program("distill", lambda: distill(arguments))


if __name__ == "__main__":
    sys.exit(main())
