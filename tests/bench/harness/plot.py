"""Throughput against concurrency as an SVG, without a plotting library."""

import statistics

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 64, 130, 40, 52
COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce")


def series(rows, results, engines):
    """{engine: [(clients, median output tokens/s), ...]} of the server rows that were measured."""
    found = {engine: [] for engine in engines}
    for row in rows:
        rounds = results.rounds(row.name, engines) if row.kind == "server" else []
        for engine in engines if rounds else ():
            found[engine].append((row.streams, statistics.median(r[engine]["tokens_per_second"] for r in rounds)))
    return {engine: points for engine, points in found.items() if points}


def _ticks(top):
    step = next(s for s in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10 ** 9) if top / s <= 6)
    return [step * i for i in range(int(top // step) + 2)]


def svg(lines, title):
    """The picture: one line an engine, with its name at its end. ValueError without points."""
    if not lines:
        raise ValueError("no server row was measured")
    clients = sorted({x for points in lines.values() for x, _ in points})
    ticks = _ticks(max(y for points in lines.values() for _, y in points))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(x, y):
        across = clients.index(x) / max(len(clients) - 1, 1)
        return LEFT + across * (right - LEFT), bottom - y / ticks[-1] * (bottom - TOP)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
           f'font-size="13" fill="#222">', f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
           f'<text x="{LEFT}" y="22" font-size="15">{title}</text>']
    for tick in ticks:
        y = place(clients[0], tick)[1]
        out.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>'
                   f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
    for x in clients:
        out.append(f'<text x="{place(x, 0)[0]:.1f}" y="{bottom + 18}" text-anchor="middle">{x}</text>')
    out.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 12}" text-anchor="middle">clients</text>')
    for colour, (engine, points) in zip(COLOURS, lines.items()):
        at = [place(x, y) for x, y in sorted(points)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        out.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in at]
        out.append(f'<text x="{at[-1][0] + 10:.1f}" y="{at[-1][1] + 4:.1f}" fill="{colour}">{engine}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
