#!/usr/bin/env python3
"""From exec to the first token: starts moe-serve, asks for one token as soon as it says that it is ready, and ends it.

usage: start_time.py [--rounds N] [--drop FILE ...] MODEL [options of moe-serve ...]

Prints, for every round, seconds from exec to ready and to the first token (prompt of 8 ids, over HTTP), and the most
memory that was resident (VmHWM) beside what of it is a mapping of files. --drop: before every round, files whose pages
leave the page cache (those that nobody has written to or mapped since), for a cold start.
"""

import argparse
import http.client
import json
import os
import pathlib
import statistics
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def drop_pages(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def status_mb(pid):
    lines = (line.split() for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    return {fields[0].rstrip(":"): int(fields[1]) / 1024 for fields in lines if fields[-1:] == ["kB"]}


def first_token(address, ids):
    connection = http.client.HTTPConnection(address, timeout=60)
    body = json.dumps({"prompt": ids, "max_tokens": 1, "temperature": 0, "ignore_eos": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise SystemExit(f"start_time: {answer.status} {text}")


def start(program, model, arguments):
    began = time.monotonic()
    process = subprocess.Popen([program, model, "--http-port", "0", "--grpc-port", "0", *arguments],
                               stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        ready = time.monotonic() - began
        if not line.startswith("moe-serve: ready "):
            raise SystemExit("start_time: moe-serve did not start")
        first_token(line.split("http=")[1].split()[0], list(range(100, 108)))
        done = time.monotonic() - began
        return ready, done, status_mb(process.pid)
    finally:
        process.terminate()
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--program", default=str(ROOT / "build/release/bin/moe-serve"))
    parser.add_argument("--drop", action="append", default=[])
    parser.add_argument("model")
    options, arguments = parser.parse_known_args()
    rounds = []
    for _ in range(options.rounds):
        for path in options.drop:
            drop_pages(path)
        ready, done, memory = start(options.program, options.model, arguments)
        rounds.append(done)
        print(f"ready {ready:.3f} s, first token {done:.3f} s, VmHWM {memory['VmHWM']:.0f} MB "
              f"(at the end: files {memory['RssFile']:.0f} MB, the rest {memory['RssAnon']:.0f} MB)", flush=True)
    print(f"first token, median of {len(rounds)}: {statistics.median(rounds):.3f} s")


if __name__ == "__main__":
    main()
