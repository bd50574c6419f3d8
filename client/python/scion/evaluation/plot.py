"""The matrix as SVG: a heat map with the perplexities in its cells, light or dark as the reader's system is."""

from __future__ import annotations

import math
import xml.sax.saxutils

from scion.evaluation.matrix import Matrix

TIMES_THE_LEAST = (1.1, 1.5, 2, 3, 5, 10)  # bounds of the colours
CELL_HEIGHT, GAP, HEADER, CHARACTER = 32, 2, 44, 7.3
LONGEST_NAME = 18
STYLE = """
svg{--page:#fff;--ink:#1b1f24;--quiet:#57606a;--dark:#10151b;--light:#fff;
--q0:#f3f7fb;--q1:#e0ebf5;--q2:#c6daec;--q3:#a3c5e2;--q4:#74a9d3;--q5:#2f6fab;--q6:#134b82}
.on-q0,.on-q1,.on-q2,.on-q3,.name{fill:var(--ink)}.on-q4{fill:var(--dark)}.on-q5,.on-q6{fill:var(--light)}
@media (prefers-color-scheme:dark){svg{--page:#12161b;--ink:#e4e8ec;--quiet:#9ba6b2;
--q0:#1a222c;--q1:#1e2e40;--q2:#213d5a;--q3:#265079;--q4:#2d68a0;--q5:#67aee6;--q6:#a9d5fb}
.on-q4{fill:var(--light)}.on-q5,.on-q6{fill:var(--dark)}}
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;font-variant-numeric:tabular-nums}
.quiet{fill:var(--quiet);font-size:12px}.strong{font-weight:700}
.page{fill:var(--page)}.own{fill:none;stroke:var(--ink);stroke-width:2}
"""


def _step(times: float) -> int:
    """6 for the row's least, less for what is worse."""
    return 6 - sum(times >= bound for bound in TIMES_THE_LEAST)


def _shown(perplexity: float) -> str:
    if not perplexity < 1e5:
        return f"{perplexity:.1e}"
    return f"{perplexity:.2f}" if perplexity < 100 else f"{perplexity:.1f}"


def _text(x: float, y: float, anchor: str, css: str, text: str) -> str:
    shown = text if len(text) <= LONGEST_NAME else text[:LONGEST_NAME] + "\u2026"
    tip = "" if shown == text else f"<title>{xml.sax.saxutils.escape(text)}</title>"
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{css}">{xml.sax.saxutils.escape(shown)}{tip}</text>'


def svg(matrix: Matrix) -> str:
    """Cells are coloured by how many times the row's least they are; a text's own domain is framed."""
    def widest(names: list[str]) -> float:
        return CHARACTER * max(min(len(name), LONGEST_NAME) for name in names) + 12

    left = max(44.0, widest([row.text for row in matrix.rows]))
    cell = max(62.0, widest(matrix.domains))
    width = max(left + cell * len(matrix.domains), 300) + 8
    height = HEADER + CELL_HEIGHT * len(matrix.rows) + 8
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width:g}" height="{height:g}" '
           f'viewBox="0 0 {width:g} {height:g}">', f"<style>{STYLE}</style>",
           "<title>Perplexity of texts under domains</title>",
           "<desc>A heat map: a row for each text, a column for each domain; each cell holds a perplexity, lower is "
           "better.</desc>", f'<rect class="page" width="{width:g}" height="{height:g}"/>',
           _whole(left, 14, "Perplexity of texts (rows) under domains")]
    for column, domain in enumerate(matrix.domains):
        out.append(_text(left + cell * column + (cell - GAP) / 2, HEADER - 8, "middle", "name", domain))
    for number, row in enumerate(matrix.rows):
        y = HEADER + CELL_HEIGHT * number
        baseline = y + CELL_HEIGHT / 2 + 4
        out.append(_text(left - 8, baseline, "end", "name", row.text))
        least = min(row.perplexity.values())
        for column, domain in enumerate(matrix.domains):
            x, value = left + cell * column, row.perplexity[domain]
            css = f"q{_step(value / least if math.isfinite(value) else math.inf)}"
            out.append(f'<rect x="{x:g}" y="{y:g}" width="{cell - GAP:g}" height="{CELL_HEIGHT - GAP}" rx="2" '
                       f'style="fill:var(--{css})"/>')
            strong = " strong" if value == least else ""
            out.append(_text(x + (cell - GAP) / 2, baseline, "middle", f"on-{css}{strong}", _shown(value)))
            if domain == row.text:
                out.append(f'<rect class="own" x="{x + 1:g}" y="{y + 1:g}" width="{cell - GAP - 2:g}" '
                           f'height="{CELL_HEIGHT - GAP - 2}" rx="2"/>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _whole(x: float, y: float, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="quiet">{text}</text>'
