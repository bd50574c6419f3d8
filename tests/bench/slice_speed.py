#!/usr/bin/env python3
"""How fast `moe-extract slice` is beside `cp && sync -f` of the same files, and how long `slice --link` takes.

usage: slice_speed.py [--pairs N] [--bin DIR] [--out DIRECTORY] MODEL [DOMAINS]

DOMAINS: those to keep, separated by commas; default: all. Cold: before every run the source's pages leave the page
cache. The two of a pair run in turn, and the pairs begin with one and the other alternately. A pair's ratio is cp's time
over slice's; 1 means that hashing every file and tensor and writing the lock cost nothing. --link (which needs a lock)
is timed warm, in as many runs. What is written goes to --out (default: beside MODEL) and is removed.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def drop_pages(directory):
    for path in files_of(directory):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def seconds(commands):
    began = time.monotonic()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("domains", nargs="?")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    names = [domain["name"] for domain in json.loads((args.model / "config.json").read_text())["domains"]]
    domains = args.domains.split(",") if args.domains else names
    kept = [path.relative_to(args.model) for path in files_of(args.model)
            if path.parent.name != "domains" or path.name.split(".")[0] in domains]
    megabytes = sum((args.model / path).stat().st_size for path in kept) / 1e6
    place = (args.out or args.model.resolve().parent) / f"slice_speed_{os.getpid()}"
    place.mkdir()
    out = place / "cut"
    extract = [args.bin / "moe-extract", "slice", args.model, "--domain", ",".join(domains), "-o", out]

    def copy():
        (out / "domains").mkdir(parents=True)
        return seconds([["cp", *(args.model / path for path in kept if path.parent == pathlib.Path(".")), out],
                        ["cp", *(args.model / path for path in kept if path.parent.name), out / "domains"],
                        ["sync", "-f", out]])

    def timed(run):
        drop_pages(args.model)
        took = run()
        shutil.rmtree(out)
        return took

    ways = {"cp": copy, "slice": lambda: seconds([extract])}
    try:
        print(f"{megabytes:.0f} MB in {len(kept)} files")
        ratios = []
        for pair in range(args.pairs):
            order = list(ways) if pair % 2 == 0 else list(ways)[::-1]
            times = {way: timed(ways[way]) for way in order}
            ratios.append(times["cp"] / times["slice"])
            print(f"pair {pair + 1}: cp && sync -f {times['cp']:.2f} s ({megabytes / times['cp']:.0f} MB/s), "
                  f"slice {times['slice']:.2f} s ({megabytes / times['slice']:.0f} MB/s), ratio {ratios[-1]:.2f}",
                  flush=True)
        print(f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        if (args.model / "scion.lock.json").exists():
            linked = []
            for _ in range(args.pairs):
                linked.append(1000 * seconds([[*extract, "--link"]]))
                shutil.rmtree(out)
            print(f"--link: median {statistics.median(linked):.0f} ms ({min(linked):.0f} to {max(linked):.0f})")
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
