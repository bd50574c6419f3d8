#!/usr/bin/env python3
"""Scion beside llama.cpp and ik_llama.cpp on the same files, and beside the limits of the machine, in one run.

Each round measures Scion and then every peer once (A B C, A B C, ...) on one row: 5 rounds, 3 where a round exceeds a
minute. All sides get the same file, threads, random token ids from the same seed, and 16-bit K and V. Printed are every
pair, the median of the rounds' ratios with their range (above 1, Scion is better), the share of the limit that limits.c
and roof.py give for this run, and which targets are reached.

--out keeps every round in a JSON file; the same command goes on where it was cut off. Files that are missing in
--models are made: random weights by make_gguf.py (numpy), other types by the first peer's llama-quantize.

A peer is NAME=DIR with llama-bench, llama-batched-bench, llama-server (and llama-quantize) in DIR, DIR/bin or
DIR/build/bin, built with native flags; a NAME that begins with "ik" is run with -rtr 1, and its batched bench must have
been made to use random token ids. Without --peer, PyPI's llama-cpp-python source package is downloaded and built below
--work; --alone measures Scion only.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time

from harness import build_peer, engines, limits, models, plot, report, results, rows

LONG_ROUND_SECONDS = 60
LIMITS_EVERY_SECONDS = 900
HERE = pathlib.Path(__file__).resolve().parent


def rounds_wanted(rounds):
    """5; 3 where a round exceeds a minute."""
    return 3 if any(r["seconds"] > LONG_ROUND_SECONDS for r in rounds) else 5


def timed(engine, row, model):
    begin = time.monotonic()
    figures = engine.measure(row, model)
    return dict(figures, seconds=time.monotonic() - begin)


def measure_at_once(work):
    return work()


def measure_row(row, all_engines, model, kept, most_rounds, in_time):
    names = [engine.name for engine in all_engines]
    while len(done := kept.rounds(row.name, names)) < min(rounds_wanted(done), most_rounds or 5):
        models.read_into_page_cache(model.path)
        figures = {engine.name: in_time(functools.partial(timed, engine, row, model)) for engine in all_engines}
        figures["seconds"] = sum(figures[name]["seconds"] for name in names)
        kept.add_round(row.name, figures)
        print(f"{row.name} round {len(done) + 1}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    return kept.rounds(row.name, names)


def arguments():
    listed = "\n".join(f"  {row.name:24} {row.help}" for row in rows.ROWS)
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"rows:\n{listed}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", default=[], metavar="NAME",
                        help="only this row; a shell pattern, may be repeated (default: all)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--alone", action="store_true", help="no peer")
    parser.add_argument("--bin", type=pathlib.Path, default=HERE.parents[1] / "build/release/bin",
                        help="step_bench, moe-serve, for --at-bandwidth kernels_bench (default: %(default)s)")
    parser.add_argument("--work", type=pathlib.Path, default=HERE.parents[1] / "build/bench",
                        help="what is made for the run (default: %(default)s)")
    parser.add_argument("--models", type=pathlib.Path, help="the measured files (default: models below --work)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, metavar="N", help="at most N rounds")
    parser.add_argument("--no-limits", action="store_true", help="do not run limits.c (half a minute, 4 GiB)")
    parser.add_argument("--at-bandwidth", type=float, metavar="GB/S",
                        help="measure each engine only while memory is read this fast, before it and after; wait, and "
                             "measure again, where it is not (1 or 2 threads)")
    parser.add_argument("--floor", type=float, metavar="SHARE",
                        help="exit with 1 if decode reads below this share of the bandwidth measured in the same round")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json",
                        help="keep every round here, and go on from it")
    parser.add_argument("--svg", type=pathlib.Path, metavar="FILE.svg",
                        help="draw the server rows' throughput against concurrency")
    parser.add_argument("--report", action="store_true", help="measure nothing, print what --out holds")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table of all rows at the end")
    args = parser.parse_args()
    if args.at_bandwidth is not None and args.threads > 2:
        parser.error("--at-bandwidth knows one thread and two")
    return args


def peers_of(args):
    if args.alone:
        return []
    given = args.peer or [f"llama.cpp={build_peer.llama_cpp(args.work)}"]
    return [engines.peer(argument, args.threads) for argument in given]


def below_floor(row, rounds, floor):
    """Whether the row decodes one stream, and slower than the floor."""
    shares = [r["scion"]["decode_share"] for r in rounds if "decode_share" in r["scion"]]
    return bool(shares) and statistics.median(shares) < floor


def main():
    args = arguments()
    try:
        wanted = rows.chosen(args.row)
        peers = peers_of(args)
        settings = {"threads": args.threads}
        in_time = measure_at_once
        if args.at_bandwidth is not None:
            settings["at_bandwidth"] = args.at_bandwidth
            read = functools.partial(limits.read_bandwidth, args.bin, args.threads)
            in_time = limits.AtLeast(args.at_bandwidth * 1e9, read).measure
        kept = results.Results(args.out, settings)
    except KeyError as error:
        sys.exit(f"compare.py: no row {error}; --help lists them")
    except ValueError as error:
        sys.exit(f"compare.py: {error}")
    quantize = next((p for peer in peers if (p := peer.directory / "llama-quantize").exists()), None)
    files = models.Models(args.models or args.work / "models", quantize)
    scion = engines.Scion("scion", args.bin, args.threads)
    limits_age, failed, measured_rows = None, False, []
    for row in wanted:
        row_peers = peers if row.peers_can else []
        names = [peer.name for peer in row_peers]
        if args.report:
            done = kept.rounds(row.name, ["scion", *names])
        else:
            if not args.no_limits and (limits_age is None or time.monotonic() - limits_age > LIMITS_EVERY_SECONDS):
                if (measured := limits.measure(args.work, args.threads)) is not None:
                    kept.add_limits(measured)
                limits_age = time.monotonic()
            try:
                done = measure_row(row, [scion, *row_peers], files.get(row), kept, args.rounds, in_time)
            except TimeoutError as error:
                sys.exit(f"compare.py: {row.name}: {error}")
        if done:
            measured_rows.append((row, done))
            print("\n".join(report.lines(row, done, names, kept.data["limits"])), flush=True)
            failed |= args.floor is not None and below_floor(row, done, args.floor)
    if args.markdown:
        print("\n".join(report.table(measured_rows, [peer.name for peer in peers], kept.data["limits"])))
    if args.svg is not None:
        lines = plot.series(rows.ROWS, kept, ["scion", *[peer.name for peer in peers]])
        args.svg.write_text(plot.svg(lines, "switch Q8_0, prompt 128, output 64: output tokens/s"))
    if failed:
        sys.exit(f"compare.py: decode is below {args.floor:.0%} of the bandwidth")


if __name__ == "__main__":
    main()
