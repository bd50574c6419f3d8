"""moe-extract is killed at every call that writes, syncs, renames or makes a directory, in turn, until a run survives.

After each kill what it makes, a cut, a fold, a quantised model or an export, is either absent or whole, and a rerun succeeds
and leaves nothing else behind.
"""

import shutil

from extract_harness import Harness, entries, remove

# Each call that changes what is on the disk. A name that this machine's strace or libc does not use is never hit: the
# count below then stays 0, which the last check notices for those that matter.
CALLS = ["write", "pwrite64", "copy_file_range", "fsync", "fdatasync", "rename", "renameat2", "mkdir", "openat", "unlink",
         "unlinkat", "close", "flock", "linkat", "ioctl"]
MUST_BE_HIT = {"write", "fsync", "openat", "flock"}
RENAMES = {"rename", "renameat2"}


def kill_each(harness, call, place, arguments, check_state):
    """Runs with a SIGKILL at the n-th `call`, n = 1, 2, ... until one run is not hit. Returns how many were."""
    n = 0
    while True:
        n += 1
        harness.expect(n < 1000, f"{call}: no run survives")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        prefix = ["strace", "-f", "-qq", "-o", harness.work / "trace", "-e", f"trace={call}", "-e",
                  f"inject={call}:signal=SIGKILL:when={n}"]
        result = harness.run(*arguments, prefix=prefix)
        if result.returncode == 0:
            return n - 1
        harness.expect(result.returncode in (-9, 137), f"{call} {n}: exit code {result.returncode}:\n{result.stderr}")
        check_state(f"killed at {call} number {n}")


def main():
    harness = Harness()
    place = harness.work / "place"
    out = place / "out"

    def kill_maker(verb, expect_whole):
        """Of a verb that makes `out`."""
        left_behind = 0

        def check(when):
            nonlocal left_behind
            harness.expect(set(entries(place)) <= {"out", ".out.scion-partial"}, f"{when}: {entries(place)}")
            left_behind += ".out.scion-partial" in entries(place)
            if out.exists():
                expect_whole(out, when)
                remove(out)
            harness.expect_code(harness.run(*verb, "-o", out), 0)
            harness.expect(entries(place) == ["out"], f"{when}, then a rerun: {entries(place)}")
            expect_whole(out, f"{when}, then a rerun")

        hits = {call: kill_each(harness, call, place, [*verb, "-o", out], check) for call in CALLS}
        makes_directory = out.is_dir()
        for call in MUST_BE_HIT | ({"mkdir"} if makes_directory else set()):
            harness.expect(hits[call] > 0, f"no {call} was ever hit")
        harness.expect(sum(hits[call] for call in RENAMES) > 0, "no rename was ever hit")
        harness.expect(left_behind > 0, "no kill ever left a partial file or directory: the clean-up was not tried")
        print(f"{verb[0]} {verb[-1]} killed at:", {call: count for call, count in hits.items() if count})

    for verb, expect_whole in harness.makers():
        kill_maker(verb, expect_whole)
    kill_maker(["slice", harness.model, "--domain", "beta", "--link"], harness.expect_whole)

    # `lock --replace` writes into a model that is there already: the old lock or the new, never half of one.
    signed = place / "signed"

    def check_lock(when):
        harness.expect_whole(signed, when)

    def relock(call):
        n = 0
        while True:
            n += 1
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(harness.model, signed)
            prefix = ["strace", "-f", "-qq", "-o", harness.work / "trace", "-e", f"trace={call}", "-e",
                      f"inject={call}:signal=SIGKILL:when={n}"]
            if harness.run("lock", "--replace", signed, prefix=prefix).returncode == 0:
                return n - 1
            check_lock(f"lock killed at {call} number {n}")

    hits = {call: relock(call) for call in ["write", "fsync", "rename"]}
    harness.expect(all(hits.values()), f"lock: {hits}")
    print("lock killed at:", hits)
    harness.done()


if __name__ == "__main__":
    main()
