"""The loss curve of a training as CSV and as SVG."""

import dataclasses
import math
from collections.abc import Sequence

HEADER = "step,tokens,seconds,train_loss,held_out_loss"


@dataclasses.dataclass(frozen=True)
class Point:
    """Losses are nats per token. train_loss is the mean since the point before; none at the beginning."""

    step: int
    tokens: int
    seconds: float
    train_loss: float | None
    held_out_loss: float


def csv(points: Sequence[Point]) -> str:
    rows = [
        f"{p.step},{p.tokens},{p.seconds:.1f},{'' if p.train_loss is None else repr(p.train_loss)},{p.held_out_loss!r}"
        for p in points
    ]
    return "\n".join([HEADER, *rows]) + "\n"


def svg(points: Sequence[Point], title: str) -> str:
    """Loss over steps, of the training and the held-out text; to be read on light and dark ground."""
    width, height, left, right, top, bottom = 640, 360, 52, 16, 36, 40
    losses = [loss for p in points for loss in (p.train_loss, p.held_out_loss) if loss is not None]
    low, high = min(losses), max(losses)
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)
    last_step = max(1, points[-1].step)

    def place(step: int, loss: float) -> str:
        x = left + (width - left - right) * step / last_step
        y = top + (height - top - bottom) * (high - loss) / (high - low)
        return f"{x:.1f} {y:.1f}"

    def line(series: Sequence[tuple[int, float]], colour: str) -> str:
        return (
            f'<path d="M{"L".join(place(*point) for point in series)}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        "<style>text{fill:#333}@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>",
        f'<text x="{left}" y="20" font-size="14">{title}</text>',
    ]
    step = _tick_step(high - low)
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        y = float(place(0, number * step).split()[1])
        parts.append(
            f'<path d="M{left} {y:.1f}H{width - right}" stroke="#888" stroke-opacity=".35"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{number * step:.4g}</text>'
        )
    for fraction in (0, 0.25, 0.5, 0.75, 1):
        at = round(last_step * fraction)
        x = float(place(at, low).split()[0])
        parts.append(f'<text x="{x:.1f}" y="{height - 22}" text-anchor="middle">{at}</text>')
    parts.append(line([(p.step, p.train_loss) for p in points if p.train_loss is not None], "#d95f02"))
    parts.append(line([(p.step, p.held_out_loss) for p in points], "#1b9e77"))
    parts.append(
        f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">steps; upwards: nats per token, '
        '<tspan style="fill:#1b9e77">held out</tspan> and <tspan style="fill:#d95f02">training</tspan></text>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _tick_step(span: float) -> float:
    """A round number that divides the span into three to eight."""
    size = 10.0 ** math.floor(math.log10(span / 3))
    return max(size * factor for factor in (1, 2, 5) if span / (size * factor) >= 3)
