"""Texts in windows, windows as perplexities.

The protocol is that of `moe-client score --matrix` and of `moe-extract report`: each document by itself, in windows of at
most `window_tokens` tokens that do not overlap; a window begins with the tokens that the tokenizer puts before a text
(BOS, or none) and goes on with the document's next tokens. Every token of a window but the first is scored, given those
before it in the window; a window of one token is left out. Perplexity is exp(-sum of natural log-likelihoods / scored
tokens).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scion.evaluation.scorers import Scorer
from scion.evaluation.texts import EvalError, Text, read_documents

WINDOW_TOKENS = 256


def windows_of(ids: Sequence[int], before: Sequence[int], window_tokens: int) -> list[list[int]]:
    """The windows of a document of the tokens `ids`; `before` begins each."""
    step = window_tokens - len(before)
    if step < 1:
        raise EvalError(f"{len(before)} tokens before a text fill a window of {window_tokens}")
    windows = [[*before, *ids[begin:begin + step]] for begin in range(0, len(ids), step)]
    return [window for window in windows if len(window) > 1]


@dataclass(frozen=True)
class Row:
    """A text under every domain."""

    text: str
    scored_tokens: int
    perplexity: dict[str, float]  # by domain

    @property
    def own(self) -> float | None:
        """Under the domain of its own name, if there is one."""
        return self.perplexity.get(self.text)

    @property
    def best_other(self) -> float | None:
        """The least under any other domain."""
        return min((value for domain, value in self.perplexity.items() if domain != self.text), default=None)


@dataclass(frozen=True)
class Matrix:
    domains: list[str]
    rows: list[Row]
    engine: str  # what measured it
    window_tokens: int

    def to_json(self) -> dict[str, Any]:
        """What `moe-extract report --matrix` reads."""
        rows = [{"text": row.text, "scored_tokens": row.scored_tokens,
                 "perplexity": {d: value if math.isfinite(value) else None for d, value in row.perplexity.items()}}
                for row in self.rows]
        return {"engine": self.engine, "window_tokens": self.window_tokens, "domains": self.domains, "rows": rows}

    def table(self) -> str:
        """For people; ends with a newline."""
        width = max(11, *(len(row.text) for row in self.rows))
        columns = [max(9, len(domain)) for domain in self.domains]
        lines = [f"{'text/domain':<{width}}" + "".join(f"  {d:>{w}}" for d, w in zip(self.domains, columns)) +
                 "     tokens  best other/own"]
        for row in self.rows:
            cells = "".join(f"  {row.perplexity[d]:>{w}.2f}" for d, w in zip(self.domains, columns))
            ratio = f"{row.best_other / row.own:.3f}" if row.own and row.best_other else "-"
            lines.append(f"{row.text:<{width}}{cells}  {row.scored_tokens:>9}  {ratio:>14}")
        return "\n".join([*lines, f"measured by {self.engine}"]) + "\n"


def _perplexity(log_likelihood: float, scored_tokens: int) -> float:
    try:
        return math.exp(-log_likelihood / scored_tokens)
    except OverflowError:
        return math.inf


def measure(scorer: Scorer, texts: Sequence[Text], window_tokens: int = WINDOW_TOKENS,
            progress: Callable[[str, str], None] = lambda text, domain: None) -> Matrix:
    """Scores every text under every domain. `progress` is called before each cell. EvalError: a text of which nothing
    can be scored, or what the scorer says."""
    before = scorer.tokenize("", add_special=True)
    rows = []
    for text in texts:
        windows = [window for document in read_documents(text.path)
                   for window in windows_of(scorer.tokenize(document, add_special=False), before, window_tokens)]
        scored = sum(len(window) - 1 for window in windows)
        if scored == 0:
            raise EvalError(f"{text.path}: no text of two tokens at least")
        perplexity = {}
        for domain in scorer.domains:
            progress(text.name, domain)
            perplexity[domain] = _perplexity(scorer.log_likelihood(domain, windows), scored)
        rows.append(Row(text.name, scored, perplexity))
    return Matrix(list(scorer.domains), rows, scorer.description, window_tokens)
