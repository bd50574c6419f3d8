"""A text and what is held out of it as windows of token ids on the disk, made once per run."""

import dataclasses
import pathlib
from typing import Any

from scion.training.errors import TrainingError
from scion.training.frozen import file_sha256
from scion.training.progress import Progress
from scion.training.texts import Encoder, IdFile, encode_text, files_of, open_ids, token_counts
from scion.training.windows import Windows
from scion.training.workspace import Workspace

LEAST_WINDOWS = 4


@dataclasses.dataclass(frozen=True)
class PreparedText:
    train: Windows
    held_out: Windows
    notes: dict[str, Any]  # tokens, files, whether all was read, sha256 of the ids
    train_path: pathlib.Path

    def histogram(self, vocab_size: int) -> Any:
        """[vocab_size] i64, of the training text."""
        return token_counts(open_ids(self.train_path), vocab_size)


def prepare(
    workspace: Workspace,
    text: pathlib.Path,
    held_out: pathlib.Path | None,
    encoder: tuple[Encoder, list[int], int | None],
    vocab_size: int,
    window_tokens: int,
    max_tokens: int,
    seed: int,
    progress: Progress,
) -> PreparedText:
    """Encodes the texts into the workspace, or takes what it holds from before. Without a held-out text, one piece in
    twenty of the text is held out.

    TrainingError: no text, binary, not UTF-8; too little of it for LEAST_WINDOWS windows of either kind.
    """
    train_path, held_path = workspace.folder / "train.ids", workspace.folder / "held-out.ids"
    notes = workspace.notes("texts.json")
    if notes is None:
        notes = _encode(text, held_out, encoder, vocab_size, max_tokens, train_path, held_path, progress)
        for what in ("train", "held_out"):
            if notes[f"{what}_tokens"] < LEAST_WINDOWS * window_tokens:
                raise TrainingError(_too_short(what, text, held_out, notes, window_tokens))
        workspace.write_notes("texts.json", notes)
    return PreparedText(
        Windows(open_ids(train_path), window_tokens, seed),
        Windows(open_ids(held_path), window_tokens, seed),
        notes,
        train_path,
    )


def _encode(
    text: pathlib.Path,
    held_out: pathlib.Path | None,
    encoder: tuple[Encoder, list[int], int | None],
    vocab_size: int,
    max_tokens: int,
    train_path: pathlib.Path,
    held_path: pathlib.Path,
    progress: Progress,
) -> dict[str, Any]:
    encode, begin, end = encoder

    def report(tokens: int) -> None:
        progress.show(f"tokens of the text: {tokens}")

    train, held = IdFile(train_path, vocab_size), IdFile(held_path, vocab_size)
    whole = encode_text(text, encode, begin, end, train, None if held_out else held, max_tokens, report)
    if held_out:
        whole &= encode_text(held_out, encode, begin, end, held, None, max_tokens, report)
    train.close()
    held.close()
    if not whole:
        progress.say(f"only the first {max_tokens} tokens of the text are used (--max-tokens)")
    files = len(files_of(text)) + (len(files_of(held_out)) if held_out else 0)
    return {
        "train_tokens": train.tokens,
        "held_out_tokens": held.tokens,
        "files": files,
        "all_of_it": whole,
        "ids_sha256": {path.name: file_sha256(path) for path in (train_path, held_path)},
    }


def _too_short(
    what: str, text: pathlib.Path, held_out: pathlib.Path | None, notes: dict[str, Any], window_tokens: int
) -> str:
    needed = LEAST_WINDOWS * window_tokens
    if notes["train_tokens"] == 0:
        return f"{text}: the text is empty"
    if what == "train":
        return f"{text}: {notes['train_tokens']} tokens to train on, {needed} are the least"
    if held_out:
        return f"{held_out}: {notes['held_out_tokens']} tokens held out, {needed} are the least"
    return (
        f"{text}: too short to hold out one piece of 64 KiB in twenty ({notes['held_out_tokens']} tokens, {needed} "
        "are the least): name another text by --held-out, or give more"
    )
