"""What the figures say: pairs, ratios, shares of limits, and whether the targets are reached."""

import math
import statistics

from harness import limits


def ratio(figure, ours, theirs):
    """How many times better: above 1, Scion is."""
    better, worse = (ours, theirs) if figure.more_is_better else (theirs, ours)
    if math.isinf(better) and math.isinf(worse):
        return 1.0
    return better / worse if worse else math.inf


def better_peer(figure, name, rounds, peers):
    """The peer whose median is better."""
    choose = max if figure.more_is_better else min
    return choose(peers, key=lambda peer: statistics.median(r[peer][name] for r in rounds))


def ratios(figure, name, rounds, peer):
    return [ratio(figure, r["scion"][name], r[peer][name]) for r in rounds]


def median_limits(measured):
    """The median of each limit over the run's measurements; nothing without one."""
    if not measured:
        return None
    medians = {key: statistics.median(m[key] for m in measured) for key in ("bandwidth", "bf16", "i8")}
    return dict(measured[0], **medians)


def limit_of_round(row, figures, at):
    """Tokens/s. Bandwidth and peak are those that were measured within the round, where they were."""
    peak = limits.PEAK_NAME[row.type]
    return limits.limit(row, dict(at, bandwidth=figures.get("bandwidth", at["bandwidth"]),
                                  **{peak: figures.get("peak", at[peak])}))


def shares_of_limit(row, rounds, measured, speed):
    """(limit in tokens/s, speed(round) as a share of it), medians of the rounds, or nothing."""
    at = median_limits(measured)
    if at is None or limits.limit(row, at) is None:
        return None
    reach = [limit_of_round(row, r["scion"], at) for r in rounds]
    return statistics.median(reach), statistics.median(speed(r) / most for r, most in zip(rounds, reach))


def limit_shares(row, rounds, measured):
    """(limit in tokens/s, Scion's share of it), medians of the rounds, or nothing."""
    return shares_of_limit(row, rounds, measured, lambda r: r["scion"]["tokens_per_second"])


def asked_of_limit(row, rounds, peer, target, measured):
    """The share of the limit that `target` times the peer is, or nothing."""
    shares = shares_of_limit(row, rounds, measured, lambda r: target * r[peer]["tokens_per_second"])
    return shares[1] if shares is not None else None


def verdicts(row, rounds, peers, measured):
    """[(what was asked, what came, reached)] for every target of the row that these figures can answer."""
    found = []
    for name, target in row.targets.items() if peers else ():
        figure = row.figures[name]
        peer = better_peer(figure, name, rounds, peers)
        all_ratios = ratios(figure, name, rounds, peer)
        got = statistics.median(all_ratios)
        reached = got >= target or target == 1 and max(all_ratios) >= 1
        asked = f"not below {peer} within the spread" if target == 1 else f"{target} x {peer}"
        if name == "tokens_per_second" and (share := asked_of_limit(row, rounds, peer, target, measured)) is not None:
            asked += f", {share:.0%} of the limit"
        found.append((asked, f"{got:.2f}", reached))
    for name, bound in row.bounds.items():
        figure = row.figures[name]
        got = statistics.median(r["scion"][name] for r in rounds)
        found.append((f"{'>=' if figure.more_is_better else '<='} {bound} {figure.label}", f"{got:.3f}",
                      got >= bound if figure.more_is_better else got <= bound))
    if row.least_bandwidth_share:
        got = statistics.median(r["scion"]["decode_share"] for r in rounds)
        found.append((f">= {row.least_bandwidth_share:.0%} of the bandwidth", f"{got:.0%}",
                      got >= row.least_bandwidth_share))
    at = median_limits(measured)
    if row.least_limit_share and at is not None:  # of what limits.c gave, whatever the round's own bandwidth was
        share = statistics.median(r["scion"]["tokens_per_second"] for r in rounds) / limits.limit(row, at)
        found.append((f">= {row.least_limit_share:.0%} of the limit", f"{share:.0%}", share >= row.least_limit_share))
    return found


def lines(row, rounds, peers, measured):
    """The row's report, line by line."""
    yield f"{row.name}: {row.help} ({len(rounds)} rounds)"
    for name, figure in row.figures.items():
        medians = {e: statistics.median(r[e][name] for r in rounds) for e in ("scion", *peers)}
        yield "  " + "   ".join(f"{e} {value:.4g}" for e, value in medians.items()) + f"  {figure.label}"
        for number, r in enumerate(rounds, 1):
            yield f"    round {number}: " + "  ".join(f"{e} {r[e][name]:.4g}" for e in ("scion", *peers))
        for peer in peers:
            got = ratios(figure, name, rounds, peer)
            yield f"    x {peer}: {statistics.median(got):.2f} ({min(got):.2f} to {max(got):.2f})"
    for e in ("scion", *peers):
        if failed := sum(r[e].get("failed", 0) for r in rounds):
            yield f"  {e}: {failed} requests failed: {'; '.join(rounds[-1][e]['errors'])}"
    if shares := limit_shares(row, rounds, measured):
        yield f"  limit {shares[0]:.4g} tokens/s; Scion reaches {shares[1]:.0%} of it"
    if "decode_share" in rounds[0]["scion"]:
        share = statistics.median(r["scion"]["decode_share"] for r in rounds)
        yield f"  Scion reads at {share:.0%} of the bandwidth measured in the same round"
    for asked, got, reached in verdicts(row, rounds, peers, measured):
        yield f"  {'reached' if reached else 'NOT REACHED'}: {asked}: {got}"


def table(measured_rows, peers, measured):
    """Markdown: a line per figure of every (row, rounds) pair. Ratios are to the better peer, with their range."""
    yield f"| {' | '.join(['row', 'figure', 'Scion', *peers, 'ratio to the better', 'of the limit', 'asked'])} |"
    yield "|---" * (6 + len(peers)) + "|"
    for row, rounds in measured_rows:
        row_peers = peers if row.peers_can else []
        shares = limit_shares(row, rounds, measured)
        asked = "; ".join(f"{asked}: {got}{'' if reached else ' (**not reached**)'}"
                          for asked, got, reached in verdicts(row, rounds, row_peers, measured))
        for number, (name, figure) in enumerate(row.figures.items()):
            cells = [row.name if number == 0 else "", figure.label]
            cells += [f"{statistics.median(r[e][name] for r in rounds):.4g}" if e == "scion" or e in row_peers else "-"
                      for e in ("scion", *peers)]
            got = ratios(figure, name, rounds, better_peer(figure, name, rounds, row_peers)) if row_peers else []
            cells.append(f"{statistics.median(got):.2f} ({min(got):.2f} to {max(got):.2f})" if got else "-")
            cells.append(f"{shares[1]:.0%}" if shares and name == "tokens_per_second" else "-")
            cells.append(asked if number == 0 else "")
            yield f"| {' | '.join(cells)} |"
