"""A full disk, a directory that may not be written, and wrong command lines: the message names the place, the exit code
is the documented one, and nothing is left behind."""

import json
import os
import pathlib
import re
import shutil
import subprocess

from extract_harness import Harness, entries

NOBODY = 65534
DEMO = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "demo"  # its files are of more than one buffer


def test_full_disk(harness, verb, expect_whole):
    """A tmpfs of every size from one page up to enough: it is full in the middle of every file in turn."""
    place = harness.work / "small"
    place.mkdir(exist_ok=True)
    failed_at = set()
    page = os.sysconf("SC_PAGESIZE")
    for pages in range(1, 200):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={pages * page}", "scion", place], check=True)
        try:
            out = place / "out"
            result = harness.run(*verb, "-o", out)
            if result.returncode == 0:
                expect_whole(out, f"a disk of {pages} pages")
                files = len(list(out.iterdir())) if out.is_dir() else 1
                break
            harness.expect_code(result, 1, out.parent, "No space left on device")
            failed_at.add(result.stderr.split("scion-partial")[-1].split(":")[0] or "the file")
            harness.expect(entries(place) == [], f"a full disk of {pages} pages was left with {entries(place)}")
        finally:
            subprocess.run(["umount", place], check=True)
    else:
        harness.expect(False, "no size was enough")
    # The first file of all may be smaller than a page.
    places = min(4, max(1, files - 1))
    harness.expect(len(failed_at) >= places, f"the disk was full in too few places: {failed_at}")
    print(f"{verb[0]}: disk full at:", sorted(failed_at))


def test_disk_full_within_a_large_file(harness):
    """Files of more than one buffer: the write that fails is one in the middle."""
    place = harness.work / "four_megabytes"
    place.mkdir()
    for size, code, texts in [("4m", 1, ["trunk.safetensors", "No space left on device"]), ("20m", 0, [])]:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "scion", place], check=True)
        try:
            result = harness.run("slice", DEMO, "--domain", "cpp", "-o", place / "out")
            harness.expect_code(result, code, *texts)
            harness.expect(entries(place) == (["out"] if code == 0 else []), f"left: {entries(place)}")
        finally:
            subprocess.run(["umount", place], check=True)


def test_full_disk_for_the_certificate(harness):
    place = harness.work / "tiny_disk"
    place.mkdir()
    cut = harness.work / "certified"
    harness.expect_code(harness.run("slice", harness.model, "--domain", "beta", "-o", cut), 0)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={os.sysconf('SC_PAGESIZE')}", "scion", place], check=True)
    try:
        # The one page is taken by a file, so that not one byte of the certificate fits.
        (place / "filler").write_bytes(b"x" * os.sysconf("SC_PAGESIZE"))
        path = place / "certificate.json"
        result = harness.run("verify", cut, "--against", harness.model, "--certificate", path)
        harness.expect_code(result, 1, path)
        harness.expect(entries(place) == ["filler"], f"left: {entries(place)}")
    finally:
        subprocess.run(["umount", place], check=True)


def test_every_failing_call(harness, verb, expect_whole):
    """Each write, sync, mkdir and rename fails in turn, as on a disk that is full or breaks at that moment."""
    place = harness.work / "failing"
    out = place / "out"
    for call, error in [("write", "ENOSPC"), ("fsync", "EIO"), ("fsync", "ENOSPC"), ("mkdir", "ENOSPC"),
                        ("renameat2", "EACCES"), ("renameat2", "ENOSPC")]:
        n = 0
        while True:
            n += 1
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            prefix = ["strace", "-qq", "-o", harness.work / "trace", "-e", f"trace={call}", "-e",
                      f"inject={call}:error={error}:when={n}"]
            result = harness.run(*verb, "-o", out, prefix=prefix)
            if result.returncode == 0:
                break
            when = f"{call} number {n} failed with {error}"
            harness.expect_code(result, 1)
            # The very last steps come after the rename: what was made is there and whole then, and the message says so.
            if out.exists():
                harness.expect("is in place" in result.stderr or "standard output" in result.stderr, result.stderr)
                harness.expect(entries(place) == ["out"], f"{when}: {entries(place)}")
                expect_whole(out, when)
            else:
                harness.expect(str(out.parent) in result.stderr, f"{when}: no path in the message: {result.stderr}")
                harness.expect(entries(place) == [], f"{when}: {entries(place)}")
        harness.expect(n > 1 or (call == "mkdir" and out.is_file()), f"no {call} was hit")
        print(f"{verb[0]} failed at each of {n - 1} {call} with {error}")


def test_file_system_without_direct_writes(harness):
    """O_DIRECT is refused when it is asked for, or with the first write: the files are the same, written as others."""
    out = harness.work / "undirected"
    flags = re.compile(r"F_SETFL, [^)]*O_DIRECT")
    for call, injection, direct in [("write", None, 2), ("fcntl", "fcntl:error=EINVAL:when={}", 1),
                                    ("write", "write:error=EINVAL:when={}", 1)]:
        trace = harness.work / "trace"
        prefix = ["strace", "-qq", "-o", trace, "-e", "trace=fcntl,write"]
        if injection is not None:
            # From the first call on that concerns a direct write, as the undisturbed run had them.
            prefix += ["-e", "inject=" + injection.format(first[call])]
        harness.expect_code(harness.run("slice", DEMO, "--domain", "cpp", "-o", out, prefix=prefix), 0)
        calls = trace.read_text().splitlines()
        harness.expect(sum(1 for line in calls if flags.search(line)) >= direct, f"O_DIRECT was not asked for: {calls}")
        if injection is None:
            at = next(i for i, line in enumerate(calls) if flags.search(line))
            first = {call: 1 + sum(1 for line in calls[:at] if line.startswith(f"{call}(")) for call in ("fcntl", "write")}
        else:
            harness.expect(any("(INJECTED)" in line for line in calls), f"nothing was injected: {calls}")
        for path in ("trunk.safetensors", "domains/cpp.safetensors"):
            harness.expect((out / path).read_bytes() == (DEMO / path).read_bytes(), f"{injection}: {path} differs")
        harness.expect_whole(out, injection)
        shutil.rmtree(out)


def test_results_that_cannot_be_written(harness):
    with open("/dev/full", "w") as full:
        command = [harness.program, "inspect", str(harness.model)]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    harness.expect(result.returncode == 1, f"exit code {result.returncode} though stdout is full")
    harness.expect("standard output" in result.stderr, result.stderr)


def test_no_permission(harness):
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    os.chmod(harness.work, 0o755)
    place = harness.work / "locked"
    place.mkdir(mode=0o755)
    cut = place / "cut"
    # The build folder may be closed to others; a copy of the program is not.
    own_program = harness.program
    harness.program = shutil.copy(own_program, harness.work / "moe-extract")
    harness.expect_code(harness.run("--version", prefix=as_nobody), 0)
    for verb, _ in harness.makers():
        result = harness.run(*verb, "-o", cut, prefix=as_nobody)
        harness.expect_code(result, 1, cut, "Permission denied")
    harness.expect(entries(place) == [], f"left: {entries(place)}")

    # A model of which one file may not be read.
    model = harness.work / "half_readable"
    shutil.copytree(harness.model, model)
    os.chmod(model / "domains" / "beta.safetensors", 0o600)
    open_place = harness.work / "open"
    open_place.mkdir()
    os.chmod(open_place, 0o777)
    result = harness.run("slice", model, "--domain", "beta", "-o", open_place / "cut", prefix=as_nobody)
    harness.expect_code(result, 1, "domains/beta.safetensors", "Permission denied")
    harness.expect(entries(open_place) == [], f"left: {entries(open_place)}")
    # The control: the same run on the readable model.
    result = harness.run("slice", harness.model, "--domain", "beta", "-o", open_place / "cut", prefix=as_nobody)
    harness.expect_code(result, 0)
    harness.program = own_program


def test_read_only_filesystem(harness):
    place = harness.work / "read_only"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "scion", place], check=True)
    try:
        for verb, _ in harness.makers():
            result = harness.run(*verb, "-o", place / "cut")
            harness.expect_code(result, 1, place / "cut", "Read-only file system")
    finally:
        subprocess.run(["umount", place], check=True)


def test_usage(harness):
    out = harness.work / "usage"
    model = harness.model
    for arguments in [
        [],
        [model],
        [model, "--domain", "beta"],
        [model, "-o", out],
        ["--domain", "beta", "-o", out],
        ["slice", model, "-o", out],
        ["slice", model, "--domain", "beta"],
        ["slice", model, "--domain", "", "-o", out],
        ["slice", model, "--domain", "beta", "-o", out, "--colour"],
        ["slice", model, "another", "--domain", "beta", "-o", out],
        ["verify", out],
        ["verify", "--against", model],
        ["verify", out, "--against", model, "--weights", "int3"],
        ["verify", out, "--against", model, "--threads", "0"],
        ["quantize", model, "--type", "q8_0"],
        ["quantize", model, "-o", out],
        ["quantize", "--type", "q8_0", "-o", out],
        ["quantize", model, "--type", "q5_k", "-o", out],
        ["quantize", model, "--type", "Q8_0", "-o", out],
        ["quantize", model, "--type", "q8_0", "--domain", "beta", "-o", out],
        ["export", model, "-o", out],
        ["export", model, "--format", "gguf"],
        ["export", "--format", "gguf", "-o", out],
        ["export", model, "--format", "onnx", "-o", out],
        ["export", model, "--format", "gguf", "--type", "q5_k", "-o", out],
        ["upcycle", harness.plain, "--domains", "a,b", "--experts", "2", "-o", out],
        ["upcycle", harness.plain, "--domains", "a,b", "--sparse-layers", "1", "-o", out],
        ["upcycle", harness.plain, "--experts", "2", "--sparse-layers", "1", "-o", out],
        ["upcycle", harness.plain, "--domains", "a,b", "--experts", "two", "--sparse-layers", "1", "-o", out],
        ["upcycle", harness.plain, "--domains", "a,b", "--experts", "2", "--sparse-layers", "1", "--seed", "-1", "-o", out],
        ["plan", model],
        ["plan", "--domain", "beta"],
        ["plan", model, "--domain", "beta", "--max-eval-tokens", "0"],
        ["inspect"],
        ["lock"],
        ["-o", out, "slice", model, "--domain", "beta"],
    ]:
        result = harness.run(*arguments)
        harness.expect_code(result, 2)
        harness.expect(result.stderr.strip() != "", f"{arguments}: no message")
        harness.expect(result.stdout == "", f"{arguments}: {result.stdout}")
    harness.expect(not out.exists(), "a usage error wrote something")


def test_help(harness):
    for arguments in [["--help"], ["slice", "--help"], ["verify", "--help"], ["inspect", "--help"], ["lock", "--help"],
                      ["quantize", "--help"], ["export", "--help"],
                      ["upcycle", "--help"], ["plan", "--help"]]:
        result = harness.run(*arguments)
        harness.expect_code(result, 0)
        harness.expect("Example: moe-extract " in result.stdout, f"{arguments}: no example:\n{result.stdout}")
    result = harness.run("--version")
    harness.expect_code(result, 0)
    harness.expect(result.stdout.startswith("moe-extract ") and result.stdout.count("\n") == 1, result.stdout)


def test_whole_way(harness):
    """Slice and verify in one go; exit code 3 and the place's name when a byte is changed; the results on stdout."""
    cut = harness.work / "way"
    result = harness.run(harness.model, "--domain", "beta", "-o", cut)
    harness.expect_code(result, 0)
    harness.expect("identical: way is the beta of model" in result.stdout, result.stdout)
    certificate = json.loads((harness.work / "way.certificate.json").read_text())
    harness.expect(certificate["result"] == "identical", "the certificate's result")
    harness.expect_code(harness.run(harness.model, "--domain", "beta", "-o", cut), 1, cut, "exists already")
    harness.expect_code(harness.run("slice", harness.model, "--domain", "fr", "-o", f"{cut}2"), 1, "'fr'", "alpha, beta")

    (harness.work / "way.certificate.json").unlink()
    path = cut / "domains" / "beta.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 0x80
    path.write_bytes(data)
    result = harness.run("verify", cut, "--against", harness.model, "--json", "--no-certificate")
    harness.expect_code(result, 3, "domains/beta.safetensors: model.layers.2.")
    differences = json.loads(result.stdout)["differences"]
    harness.expect(differences[0]["file"] == "domains/beta.safetensors", differences)
    harness.expect(not (harness.work / "way.certificate.json").exists(), "--no-certificate wrote one")
    harness.expect_code(harness.run("inspect", cut, "--check"), 1, "domains/beta.safetensors: model.layers.2.")
    harness.expect_code(harness.run("lock", cut), 1, "--replace")
    harness.expect_code(harness.run("lock", cut, "--replace"), 0)
    harness.expect_code(harness.run("inspect", cut, "--check"), 0)
    certificate_path = harness.work / "elsewhere.json"
    result = harness.run("verify", cut, "--against", harness.model, "--certificate", certificate_path)
    harness.expect_code(result, 3, "domains/beta.safetensors: model.layers.2.", "element ")
    harness.expect(result.stdout.startswith("differs: "), result.stdout)
    harness.expect(json.loads(certificate_path.read_text())["result"] == "differs", "the certificate's result")
    harness.expect_code(harness.run("verify", cut, "--against", pathlib.Path("/nowhere")), 1, "/nowhere")

    inspection = json.loads(harness.run("inspect", harness.model, "--json", "--check").stdout)
    harness.expect([p["name"] for p in inspection["parts"]] == ["trunk", "alpha", "beta"], inspection)
    harness.expect(inspection["check"] == "ok", inspection)


def test_quantize(harness):
    """Quantised, cut, verified; what it says on stdout; what it refuses."""
    out = harness.work / "q4"
    result = harness.run("quantize", harness.model, "--type", "q4_0", "-o", out)
    harness.expect_code(result, 0)
    harness.expect("matrices of" in result.stdout and "q4_0" in result.stdout, result.stdout)
    harness.expect_whole(out, "quantised")
    eight = harness.work / "q8"
    result = harness.run("quantize", harness.model, "--type", "q8_0", "-o", eight, "--json")
    harness.expect_code(result, 0)
    summary = json.loads(result.stdout)
    harness.expect(summary["type"] == "q8_0" and summary["quantized"] > 0, summary)
    harness.expect(summary["bytes"] < summary["model_bytes"], summary)
    harness.expect_code(harness.run("quantize", harness.model, "--type", "q4_0", "-o", out), 1, out, "exists already")
    harness.expect_code(harness.run("quantize", eight, "--type", "q4_0", "-o", harness.work / "twice"), 1, eight,
                        "quantised already")
    result = harness.run("quantize", "/nowhere", "--type", "q4_0", "-o", harness.work / "twice")
    harness.expect_code(result, 1, "/nowhere")
    cut = harness.work / "q4_beta"
    harness.expect_code(harness.run(out, "--domain", "beta", "-o", cut), 0)
    inspection = json.loads(harness.run("inspect", cut, "--json", "--check").stdout)
    harness.expect(inspection["check"] == "ok" and inspection["types"]["Q4_0"] > 0, inspection)
    harness.expect([entry["verb"] for entry in inspection["lock"]["lineage"]][-2:] == ["quantize", "slice"], inspection)


def test_upcycle(harness):
    """Made, verified, cut; what it says on stdout; names and numbers that it refuses, before anything is written."""
    numbers = ["--experts", "2", "--sparse-layers", "2"]
    out = harness.work / "domains"
    result = harness.run("upcycle", harness.plain, "--domains", "code,law", *numbers, "-o", out)
    harness.expect_code(result, 0)
    harness.expect("domains code,law of 2 experts in the last 2 layers" in result.stdout, result.stdout)
    harness.expect_whole(out, "upcycled")
    result = harness.run("verify", out, "--against", harness.plain)
    harness.expect_code(result, 0)
    harness.expect("identical: domains is plain in every domain (code+law)" in result.stdout, result.stdout)
    certificate = json.loads((harness.work / "domains.certificate.json").read_text())
    harness.expect(certificate["result"] == "identical" and set(certificate["coverage"]) == {"code", "law"}, certificate)
    cut = harness.work / "law"
    harness.expect_code(harness.run(out, "--domain", "law", "-o", cut), 0)
    harness.expect_code(harness.run("verify", cut, "--against", harness.plain), 0)
    again = harness.work / "again"
    result = harness.run("upcycle", harness.plain, "--domains", "code,law", *numbers, "--seed", "1", "--json", "-o", again)
    harness.expect_code(result, 0)
    summary = json.loads(result.stdout)
    harness.expect(summary["sparse_layers"] == [1, 2] and summary["seed"] == 1, summary)
    harness.expect(summary["smallest_share"] > 0.49 and summary["largest_share"] < 0.51, summary)
    harness.expect((again / "domains/law.safetensors").read_bytes() == (out / "domains/law.safetensors").read_bytes(),
                   "the same seed gave other routes")

    path = out / "domains" / "law.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 0x80
    path.write_bytes(data)
    result = harness.run("verify", out, "--against", harness.plain)
    harness.expect_code(result, 3, "domains/law.safetensors: model.layers.2.mlp.domains.law.experts.")

    place = harness.work / "refused"
    place.mkdir()
    for dense, domains, experts, layers, text in [
            (harness.plain, "code,../law", 2, 1, "'../law'"), (harness.plain, "all", 2, 1, "'all'"),
            (harness.plain, "a,a", 2, 1, "twice"), (harness.plain, "a", 0, 1, "0 experts"),
            (harness.plain, "a", 2, 4, "3 layers"), (harness.model, "a", 2, 1, "has experts already"),
            ("/nowhere", "a", 2, 1, "/nowhere"), (harness.model / "config.json", "a", 2, 1, "config.json")]:
        result = harness.run("upcycle", dense, "--domains", domains, "--experts", experts, "--sparse-layers", layers,
                             "-o", place / "out")
        harness.expect_code(result, 1, text)
        harness.expect(entries(place) == [], f"left: {entries(place)}")
    harness.expect_code(harness.run("upcycle", harness.plain, "--domains", "a", *numbers, "-o", out), 1, out,
                        "exists already")


def test_plan(harness):
    """The table, and the same as JSON; nothing is written."""
    before = entries(harness.work)
    result = harness.run("plan", harness.model, "--domain", "beta")
    harness.expect_code(result, 0)
    for text in ("slice, q4_0", "fold, width 2", "memory MB", "densify"):
        harness.expect(text in result.stdout, result.stdout)
    result = harness.run("plan", harness.model, "--domain", "beta", "--json")
    harness.expect_code(result, 0)
    plan = json.loads(result.stdout)
    cut = harness.work / "planned"
    result = harness.run("slice", harness.model, "--domain", "beta", "-o", cut, "--json")
    harness.expect_code(result, 0)
    harness.expect(json.loads(result.stdout)["domains"] == ["beta"], result.stdout)
    made = sum(path.stat().st_size for path in cut.rglob("*") if path.is_file())
    harness.expect(abs(plan["cuts"][0]["disk_bytes"] - made) < 0.02 * made, f"{plan['cuts'][0]}, but made: {made}")
    harness.expect(set(entries(harness.work)) - set(before) == {"planned"}, "plan wrote something")
    harness.expect_code(harness.run("plan", harness.model, "--domain", "fr"), 1, "'fr'", "alpha, beta")
    harness.expect_code(harness.run("plan", harness.plain, "--domain", "default"), 1, "no domains")
    harness.expect_code(harness.run("plan", harness.model, "--domain", "beta", "--eval", "/nowhere"), 1, "tokenizer")


def test_link(harness):
    """Links in the same file system; in another one, or without a lock, the reason, and nothing is left."""
    cut = harness.work / "linked"
    result = harness.run("slice", harness.model, "--domain", "beta", "-o", cut, "--link", "--json")
    harness.expect_code(result, 0)
    summary = json.loads(result.stdout)
    harness.expect(summary["reflinks"] + summary["hard_links"] == 2, summary)
    harness.expect_whole(cut, "linked")
    harness.expect_code(harness.run("verify", cut, "--against", harness.model, "--no-certificate"), 0)
    place = harness.work / "elsewhere"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "scion", place], check=True)
    try:
        result = harness.run("slice", harness.model, "--domain", "beta", "-o", place / "cut", "--link")
        harness.expect_code(result, 1, place, "different file systems", "--link")
        harness.expect(entries(place) == [], f"left: {entries(place)}")
    finally:
        subprocess.run(["umount", place], check=True)
    unsigned = harness.work / "unsigned"
    shutil.copytree(harness.model, unsigned)
    (unsigned / "scion.lock.json").unlink()
    result = harness.run("slice", unsigned, "--domain", "beta", "-o", place / "cut", "--link")
    harness.expect_code(result, 1, unsigned, "moe-extract lock")
    harness.expect(entries(place) == [], f"left: {entries(place)}")
def test_export(harness):
    """What it says on stdout; what it refuses."""
    out = harness.work / "plain.gguf"
    result = harness.run("export", harness.plain, "--format", "gguf", "-o", out)
    harness.expect_code(result, 0)
    harness.expect("as gguf, 29 tensors, most of it BF16" in result.stdout, result.stdout)
    harness.expect("without a tokenizer" in result.stdout, result.stdout)
    result = harness.run("export", harness.plain, "--format", "gguf", "-o", out)
    harness.expect_code(result, 1, out, "exists already")
    plain = harness.work / "plain_hf"
    result = harness.run("export", out, "--format", "hf", "--type", "f32", "-o", plain, "--json")
    harness.expect_code(result, 0)
    summary = json.loads(result.stdout)
    harness.expect((summary["format"], summary["type"], summary["tensors"]) == ("hf", "F32", 29), summary)
    nowhere = harness.work / "nowhere"
    harness.expect_code(harness.run("export", harness.model, "--format", "gguf", "-o", nowhere), 1, harness.model,
                        "moe-extract densify")
    result = harness.run("export", harness.plain, "--format", "hf", "--type", "q8_0", "-o", nowhere)
    harness.expect_code(result, 1, "gguf")
    harness.expect(not nowhere.exists(), "a refused export wrote something")


def test_names_that_are_not_utf8(harness):
    """A directory may have any name but JSON only text: what is no UTF-8 becomes U+FFFD, in every verb's --json."""
    place = harness.work / "names"
    place.mkdir()
    model, plain, donor = (place / os.fsdecode(name) for name in (b"model-\xff", b"plain-\xff", b"donor-\xff"))
    shutil.copytree(harness.model, model)
    shutil.copytree(harness.plain, plain)
    made = {name: place / os.fsdecode(name.encode() + b"-\xff")
            for name in ("cut", "fold", "small", "grown", "hf", "page")}
    for verb, *arguments in (
            ("inspect", model), ("inspect", model, "--check"), ("log", model), ("plan", model, "--domain", "beta"),
            ("slice", model, "--domain", "beta", "-o", made["cut"]), ("verify", made["cut"], "--against", model),
            ("densify", model, "--domain", "beta", "-o", made["fold"]), ("report", model, "-o", made["page"]),
            ("quantize", model, "--type", "q8_0", "-o", made["small"]),
            ("export", model, "--format", "hf", "-o", made["hf"]),
            ("upcycle", plain, "--domains", "a,b", "--experts", "2", "--sparse-layers", "1", "-o", made["grown"]),
            ("slice", model, "--domain", "alpha", "-o", donor),
            ("graft", model, "--from", donor, "--as", "law", "--in-place"),
            ("log", model), ("drop", model, "--domain", "law"), ("rollback", model, "--domain", "law"), ("gc", model)):
        result = harness.run(verb, *arguments, "--json", errors="surrogateescape")
        harness.expect_code(result, 0)
        json.loads(result.stdout.encode())  # UnicodeEncodeError: there were other bytes
        harness.expect("-\ufffd" in result.stdout or verb in ("plan", "verify"), f"{verb}: {result.stdout}")
    # A certificate can't name them: what it can't find is never called identical.
    certificate = made["cut"].with_name(made["cut"].name + ".certificate.json")
    result = harness.run("verify", "--certificate", certificate, "--json", errors="surrogateescape")
    harness.expect_code(result, 3, "No such file or directory")
    harness.expect(json.loads(result.stdout.encode())["result"] == "changed", result.stdout)


def main():
    harness = Harness()
    test_usage(harness)
    test_help(harness)
    test_whole_way(harness)
    test_quantize(harness)
    test_upcycle(harness)
    test_plan(harness)
    test_link(harness)
    test_export(harness)
    test_names_that_are_not_utf8(harness)
    for verb, expect_whole in harness.makers():
        test_full_disk(harness, verb, expect_whole)
        test_every_failing_call(harness, verb, expect_whole)
    test_disk_full_within_a_large_file(harness)
    test_full_disk_for_the_certificate(harness)
    test_file_system_without_direct_writes(harness)
    test_results_that_cannot_be_written(harness)
    test_no_permission(harness)
    test_read_only_filesystem(harness)
    harness.done()


if __name__ == "__main__":
    main()
