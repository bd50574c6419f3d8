"""The verbs that change a model where it lies: graft --in-place, drop, rollback, gc and lock --replace.

Killed at every call that writes, syncs, renames, makes or removes, in turn, the directory opens afterwards as before or
as after, and the next writer repairs it. When a call fails instead, or the disk is full, or may not be written, all is as
before and nothing is left. One writer at a time. Memory does not follow the size of the model.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys

from extract_harness import Harness, entries, tree

NOBODY = 65534
# Every call that changes what is on the disk, or waits for it.
CALLS = ["write", "fsync", "rename", "renameat2", "mkdir", "unlink", "unlinkat", "flock"]
MUST_BE_HIT = {"graft": {"write", "fsync", "rename", "mkdir", "unlinkat", "flock"},
               "drop": {"write", "fsync", "rename", "mkdir", "unlinkat", "flock"},
               "rollback": {"write", "fsync", "rename", "mkdir", "unlinkat", "flock"},
               "gc": {"write", "fsync", "rename", "mkdir", "unlink", "unlinkat", "flock"},
               "lock": {"write", "fsync", "rename", "flock"}}


class Life:
    """A model that is made anew for each run, what each verb starts from, and a donor."""

    def __init__(self, harness):
        self.harness = harness
        self.place = harness.work / "life"
        self.model = self.place / "model"
        self.start = harness.work / "start"  # what `model` is made from
        self.donor = harness.work / "donor"
        harness.expect_code(harness.run("slice", harness.model, "--domain", "beta", "-o", self.donor), 0)
        grafted = harness.work / "grafted"
        shutil.copytree(harness.model, grafted)
        harness.expect_code(self.on(grafted, "graft"), 0)
        self.starts = {"graft": harness.model, "drop": grafted, "rollback": grafted, "gc": grafted, "lock": grafted}

    def verb(self, name, model):
        return {"graft": ["graft", model, "--from", self.donor, "--as", "alpha", "--in-place"],
                "drop": ["drop", model, "--domain", "beta"],
                "rollback": ["rollback", model, "--domain", "alpha"],
                "gc": ["gc", model],
                "lock": ["lock", "--replace", model]}[name]

    def on(self, model, name, prefix=()):
        return self.harness.run(*self.verb(name, model), prefix=prefix)

    def renew(self, name):
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        shutil.copytree(self.starts[name], self.model)

    def state(self, when):
        """What a reader sees: which files make which domain, and which generations are remembered."""
        result = self.harness.run("inspect", "--json", self.model)
        self.harness.expect(result.returncode == 0, f"{when}: the model does not open:\n{result.stderr}")
        log = self.harness.run("log", "--json", self.model)
        self.harness.expect(log.returncode == 0, f"{when}: no log:\n{log.stderr}")
        log = json.loads(log.stdout)
        return json.dumps([json.loads(result.stdout)["parts"], log["domains"], len(log["lineage"])], sort_keys=True)

    def states(self, name):
        self.renew(name)
        before = self.state("before")
        self.harness.expect_code(self.on(self.model, name), 0)
        after = self.state("after")
        self.harness.expect(before != after, f"{name} changes nothing")
        self.harness.expect_whole(self.model, f"after {name}")
        return before, after

    def inject(self, call, what, n):
        return ["strace", "-f", "-qq", "-o", self.harness.work / "trace", "-e", f"trace={call}", "-e",
                f"inject={call}:{what}:when={n}"]

    def expect_repaired(self, state, when):
        """The next writer tidies up, and what a reader saw stays."""
        self.harness.expect_code(self.harness.run("gc", "--dry-run", self.model), 0)
        self.harness.expect(self.state(when) == state, f"{when}: the repair changed the state")
        self.harness.expect_whole(self.model, f"{when}, then repaired")
        left = [name for name in entries(self.model) if name.startswith(".")]
        self.harness.expect(left == [], f"{when}, then repaired: {left}")


def test_kills(life):
    for name in life.starts:
        before, after = life.states(name)
        seen, hits = set(), {}
        for call in CALLS:
            n = 0
            while True:
                n += 1
                life.harness.expect(n < 200, f"{name}: {call}: no run survives")
                life.renew(name)
                result = life.on(life.model, name, life.inject(call, "signal=SIGKILL", n))
                if result.returncode == 0:
                    break
                when = f"{name} killed at {call} number {n}"
                life.harness.expect(result.returncode in (-9, 137), f"{when}: {result.returncode}\n{result.stderr}")
                state = life.state(when)
                life.harness.expect(state in (before, after), f"{when}: neither before nor after: {state}")
                seen.add(state)
                life.expect_repaired(state, when)
            hits[call] = n - 1
        for call in MUST_BE_HIT[name]:
            life.harness.expect(hits[call] > 0, f"{name}: no {call} was ever hit")
        life.harness.expect(seen == {before, after}, f"{name}: only one state was ever seen")
        print(f"{name} killed at:", {call: count for call, count in hits.items() if count})


def test_kills_of_the_repair(life):
    """A repair that is killed is repaired in turn: after every rename of a graft, at every call of the repair."""
    before, after = life.states("graft")
    count = 0
    for rename in range(1, 100):
        life.renew("graft")
        if life.on(life.model, "graft", life.inject("rename", "signal=SIGKILL", rename)).returncode == 0:
            break
        broken = life.place / "broken"
        shutil.copytree(life.model, broken)
        state = life.state(f"killed at rename {rename}")
        for call in ["rename", "unlink", "unlinkat", "fsync"]:
            for n in range(1, 100):
                shutil.rmtree(life.model)
                shutil.copytree(broken, life.model)
                result = life.harness.run("gc", "--dry-run", life.model, prefix=life.inject(call, "signal=SIGKILL", n))
                if result.returncode == 0:
                    break
                count += 1
                when = f"graft killed at rename {rename}, its repair at {call} {n}"
                life.harness.expect(life.state(when) == state, f"{when}: another state")
                life.expect_repaired(state, when)
    life.harness.expect(rename > 4 and count > 20, f"too little was tried: {rename}, {count}")
    print(f"repairs killed: {count}")


def test_failing_calls(life):
    for name in life.starts:
        before, after = life.states(name)
        for call, error in [("write", "ENOSPC"), ("fsync", "EIO"), ("rename", "EACCES"), ("mkdir", "ENOSPC"),
                            ("unlink", "EIO"), ("unlinkat", "EIO")]:
            n = 0
            while True:
                n += 1
                life.renew(name)
                files = tree(life.model)
                result = life.on(life.model, name, life.inject(call, f"error={error}", n))
                if result.returncode == 0:
                    break
                when = f"{name}: {call} number {n} failed with {error}"
                life.harness.expect_code(result, 1)
                state = life.state(when)
                if state == after:
                    # After the lock's rename; or it was the last step, the words on stdout.
                    told = "is in place" in result.stderr or "may not survive" in result.stderr
                    told = told or "standard output" in result.stderr or name == "lock"
                    life.harness.expect(told, f"{when}: {result.stderr}")
                else:
                    life.harness.expect(state == before, f"{when}: neither before nor after")
                    life.harness.expect(str(life.model) in result.stderr, f"{when}: no path: {result.stderr}")
                    left = set(tree(life.model)) - set(files)
                    life.harness.expect(tree(life.model) == files, f"{when}: not as before: {left}")
                life.expect_repaired(state, when)
            print(f"{name} failed at each of {n - 1} {call} with {error}")


def fill(path, page, free_pages):
    """Leaves so many pages of the file system free."""
    with open(path, "wb", buffering=0) as ballast:
        size = 0
        with contextlib.suppress(OSError):
            while True:
                size += ballast.write(bytes(page))
    os.truncate(path, max(0, size - free_pages * page))


def test_full_disk(life):
    """A file system with the model on it, and a few pages more or less."""
    page = os.sysconf("SC_PAGESIZE")
    disk = life.harness.work / "disk"
    disk.mkdir()
    for name in ["graft", "drop", "rollback", "gc"]:
        files = [p for p in life.starts[name].rglob("*")]
        needed = sum((p.stat().st_size + page - 1) // page if p.is_file() else 1 for p in files) + 500
        failed = 0
        for free in range(400):
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={needed * page}", "scion", disk], check=True)
            try:
                model = disk / "model"
                shutil.copytree(life.starts[name], model)
                fill(disk / "ballast", page, free)
                before = tree(model)
                result = life.on(model, name)
                if result.returncode == 0:
                    life.harness.expect_whole(model, f"{name} with {free} pages free")
                    break
                life.harness.expect_code(result, 1, model, "No space left on device")
                life.harness.expect(tree(model) == before, f"{name} with {free} pages free left something")
                failed += 1
            finally:
                subprocess.run(["umount", disk], check=True)
        else:
            life.harness.expect(False, f"{name}: no room was enough")
        life.harness.expect(failed >= 2, f"{name}: the disk was full {failed} times only")
        print(f"{name}: disk full {failed} times")


def test_no_permission(life):
    harness = life.harness
    os.chmod(harness.work, 0o755)
    own_program, harness.program = harness.program, shutil.copy(harness.program, harness.work / "moe-extract")
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    for name in life.starts:
        life.renew(name)
        before = tree(life.model)
        harness.expect_code(life.on(life.model, name, as_nobody), 1, life.model, "Permission denied")
        harness.expect(tree(life.model) == before, f"{name} wrote though it may not")
        # The control: with the permission it works.
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", life.model], check=True)
        harness.expect_code(life.on(life.model, name, as_nobody), 0)
    harness.program = own_program
    disk = harness.work / "read_only"
    disk.mkdir()
    for name in life.starts:
        subprocess.run(["mount", "-t", "tmpfs", "scion", disk], check=True)
        try:
            model = disk / "model"
            shutil.copytree(life.starts[name], model)
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            harness.expect_code(life.on(model, name), 1, model, "Read-only file system")
            harness.expect_code(harness.run("inspect", "--check", model), 0)
        finally:
            subprocess.run(["umount", disk], check=True)


def test_two_writers(life):
    """The second is told, whatever it wants; the first, held at its first rename, finishes."""
    for second in life.starts:
        life.renew("drop")
        prefix = life.inject("rename", "delay_enter=2000000", 1)
        command = [*map(str, prefix), life.harness.program, *map(str, life.verb("drop", life.model))]
        first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not (life.model / ".scion-transaction" / "lock.json").exists():
            life.harness.expect(first.poll() is None, "the first writer ended early")
        life.harness.expect_code(life.on(life.model, second), 1, life.model, "another run is changing it")
        out, err = first.communicate()
        life.harness.expect(first.returncode == 0, f"the first writer failed: {err}")
        life.harness.expect_whole(life.model, f"after a drop, beside a {second}")


HIDDEN, VOCAB, EXPERT = 4096, 64, 64  # of the sparse models' layers; their size is in the dense FFNs


def config_of(architecture, inner):
    return {"model_type": architecture, "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": inner,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16,
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "tie_word_embeddings": True,
            "bos_token_id": 0, "eos_token_id": 1, "rope_theta": 10000.0, "torch_dtype": "bfloat16", "dtype": "bfloat16"}


def trunk_tensors(inner, dense_layers):
    """(name, shape) of a trunk of two layers."""
    tensors = [("model.embed_tokens.weight", [VOCAB, HIDDEN]), ("model.norm.weight", [HIDDEN])]
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        tensors += [(prefix + "input_layernorm.weight", [HIDDEN]), (prefix + "post_attention_layernorm.weight", [HIDDEN]),
                    (prefix + "self_attn.q_proj.weight", [64, HIDDEN]), (prefix + "self_attn.k_proj.weight", [16, HIDDEN]),
                    (prefix + "self_attn.v_proj.weight", [16, HIDDEN]), (prefix + "self_attn.o_proj.weight", [HIDDEN, 64])]
        if layer in dense_layers:
            tensors += [(prefix + "mlp.gate_proj.weight", [inner, HIDDEN]), (prefix + "mlp.up_proj.weight", [inner, HIDDEN]),
                        (prefix + "mlp.down_proj.weight", [HIDDEN, inner])]
    return tensors


def inner_size(ffn_bytes):
    return ffn_bytes // (3 * HIDDEN * 2) // 64 * 64


def write_sparse_model(directory, trunk_bytes, domains, trunk=None):
    """A model of zeros: holes, but for the headers. `trunk`: a file to link to instead. No lock."""
    inner = inner_size(trunk_bytes)
    (directory / "domains").mkdir(parents=True)
    config = config_of("scion", inner) | {
        "architectures": ["ScionForCausalLM"], "moe_intermediate_size": EXPERT, "sparse_layers": [1],
        "num_experts_per_tok": 1, "domains": [{"name": name, "num_experts": 2} for name in domains],
        "default_domain": domains[0]}
    (directory / "config.json").write_text(json.dumps(config))
    if trunk is None:
        write_zeros(directory / "trunk.safetensors", bf16(trunk_tensors(inner, [0])))
    else:
        os.link(trunk, directory / "trunk.safetensors")
    for name in domains:
        prefix = f"model.layers.1.mlp.domains.{name}."
        experts = [(f"{prefix}experts.{e}.{projection}_proj.weight",
                    [HIDDEN, EXPERT] if projection == "down" else [EXPERT, HIDDEN])
                   for e in range(2) for projection in ("gate", "up", "down")]
        write_zeros(directory / "domains" / f"{name}.safetensors", [(prefix + "route", "I32", [1, VOCAB]), *bf16(experts)])


def write_dense_model(directory, ffn_bytes):
    """An ordinary Llama of zeros with two FFNs of that size."""
    inner = inner_size(ffn_bytes)
    directory.mkdir()
    (directory / "config.json").write_text(
        json.dumps(config_of("llama", inner) | {"architectures": ["LlamaForCausalLM"]}))
    write_zeros(directory / "model.safetensors", bf16(trunk_tensors(inner, [0, 1])))


def bf16(tensors):
    return [(name, "BF16", shape) for name, shape in tensors]


def write_zeros(path, tensors):
    header, offset = {}, 0
    for name, dtype, shape in tensors:
        size = {"BF16": 2, "I32": 4}[dtype]
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def test_memory(life):
    """Peak resident memory stays under 64 MB, whatever the size of the files: those that are read are of 300 MB, those
    that need not be read of 8 GB."""
    harness = life.harness
    measure = ("import resource, subprocess, sys; code = subprocess.call(sys.argv[2:]); "
               "open(sys.argv[1], 'w').write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)); sys.exit(code)")
    peaks = {}

    def run(*verb):
        result = harness.run(*verb, prefix=[sys.executable, "-c", measure, harness.work / "peak"])
        harness.expect_code(result, 0)
        peak = int((harness.work / "peak").read_text())
        harness.expect(peak < 64 << 10, f"{verb[0]}: {peak} KiB resident")
        peaks[verb[0]] = max(peak >> 10, peaks.get(verb[0], 0))

    for size in [300 << 20, 8 << 30]:
        place = harness.work / f"sparse_{size}"
        place.mkdir()
        model, donor = place / "model", place / "donor"
        write_sparse_model(model, size, ["alpha", "beta"])
        if size < 1 << 30:
            write_sparse_model(donor, size, ["gamma"])
            run("lock", model)
            run("lock", donor)
            run("inspect", "--check", model)
            run("slice", model, "--domain", "beta", "-o", place / "cut")
            run("graft", model, "--from", donor, "--as", "law", "-o", place / "grafted")
            run("verify", "--certificate", sign_files(harness, model, place))
            write_dense_model(place / "dense", 96 << 20)
            run("upcycle", place / "dense", "--domains", "a,b", "--experts", "2", "--sparse-layers", "1",
                "-o", place / "upcycled")
            run("export", place / "dense", "--format", "hf", "-o", place / "exported")
        else:
            # A lock whose hash of the trunk is made up: nothing below has a reason to read 8 GB. The small ones are right.
            write_sparse_model(donor, size, ["gamma"], model / "trunk.safetensors")
            write_lock(harness, model, place)
        run("plan", model, "--domain", "beta")
        run("slice", model, "--domain", "beta", "--link", "-o", place / "linked")
        run("graft", model, "--from", donor, "--as", "beta", "--in-place")
        run("rollback", model, "--domain", "beta")
        run("drop", model, "--domain", "alpha")
        run("log", model)
        run("gc", model)
        run("inspect", model)
        run("report", model, "-o", place / "report.html")
        harness.expect(os.stat(model / "trunk.safetensors").st_size > size * 9 // 10, "the trunk is small")
        shutil.rmtree(place)
    print("peak resident MiB:", peaks)


def sign_files(harness, model, place):
    """A certificate as verify writes it, of a model whose logits nobody wants to wait for."""
    lock = json.loads((model / "scion.lock.json").read_text())
    subject = {"name": "model", "directory": "model", "lock_sha256": lock["lock_sha256"],
               "files": {path: entry["sha256"] for path, entry in lock["files"].items()}}
    path = place / "certificate.json"
    path.write_text(json.dumps({"result": "identical", "time": "2026-01-01T00:00:00Z", "cut": subject, "model": subject}))
    return path


def write_lock(harness, model, place):
    """Signs the model with another, small trunk in its place, then puts size and a made-up hash of the real one in."""
    import hashlib

    small = place / "small"
    write_sparse_model(small, 4 << 20, ["alpha", "beta"])
    shutil.copy(small / "config.json", place / "config.json")
    harness.expect_code(harness.run("lock", small), 0)
    lock = json.loads((small / "scion.lock.json").read_text())
    lock["files"]["trunk.safetensors"]["size"] = os.stat(model / "trunk.safetensors").st_size
    config = (model / "config.json").read_bytes()
    lock["files"]["config.json"] = {"size": len(config), "sha256": hashlib.sha256(config).hexdigest()}
    lock.pop("lock_sha256")
    dump = lambda: json.dumps(lock, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    lock["lock_sha256"] = hashlib.sha256(dump().encode()).hexdigest()
    (model / "scion.lock.json").write_text(dump())
    shutil.rmtree(small)


def test_usage_and_help(life):
    harness, model = life.harness, life.harness.model
    for arguments in [
        ["graft", model, "--from", life.donor, "--as", "law"],
        ["graft", model, "--from", life.donor, "--as", "law", "--in-place", "-o", life.place / "x"],
        ["graft", model, "--as", "law", "--in-place"],
        ["graft", model, "--from", life.donor, "--in-place"],
        ["graft", "--from", life.donor, "--as", "law", "--in-place"],
        ["drop", model],
        ["drop", "--domain", "alpha"],
        ["rollback", model],
        ["rollback", model, "--domain", "alpha", "--to", "0"],
        ["rollback", model, "--domain", "alpha", "--to", "x"],
        ["gc"],
        ["gc", model, "--keep", "-1"],
        ["log"],
        ["log", model, "more"],
        ["report", model],
        ["report", "-o", life.place / "x"],
        ["report", model, "-o", life.place / "x", "--text", model, "--matrix", model / "config.json"],
        ["verify", life.donor, "--against", model, "--donor", life.donor],
        ["verify", life.donor, "--against", model, "--as", "law"],
        ["verify", "--certificate", "x.json", "--threads", "1"],
        ["verify"],
    ]:
        result = harness.run(*arguments)
        harness.expect_code(result, 2)
        harness.expect(result.stderr.strip() != "" and result.stdout == "", f"{arguments}: {result.stdout}")
    for verb in ["graft", "drop", "rollback", "gc", "log", "report", "verify"]:
        result = harness.run(verb, "--help")
        harness.expect_code(result, 0)
        harness.expect(f"Example: moe-extract {verb} " in result.stdout, f"{verb}: no example:\n{result.stdout}")
        harness.expect("--json" in result.stdout, f"{verb}: no --json")


def test_whole_life(life):
    """A graft into a new directory, verified; the certificate notices what changes; then the rest of its life."""
    harness = life.harness
    out, certificate = harness.work / "out", harness.work / "out.json"
    result = harness.run("graft", harness.model, "--from", f"{life.donor}@beta", "--as", "law", "-o", out, "--json")
    harness.expect_code(result, 0)
    summary = json.loads(result.stdout)
    harness.expect((summary["generation"], summary["replaced"]) == (1, False), summary)
    result = harness.run("verify", out, "--against", harness.model, "--donor", life.donor, "--as", "law",
                         "--certificate", certificate)
    harness.expect_code(result, 0)
    harness.expect("identical: out is model with beta of donor as law, bit for bit" in result.stdout, result.stdout)
    harness.expect(json.loads(certificate.read_text())["grafted"] == "law", "the certificate does not say what it is")

    result = harness.run("verify", "--certificate", certificate)
    harness.expect_code(result, 0)
    harness.expect("unchanged: all " in result.stdout, result.stdout)
    # Any file that the certificate speaks of, one byte of it.
    own_model = harness.work / "own_model"
    for directory in [out, life.donor]:
        for path in sorted(p for p in directory.rglob("*") if p.is_file()):
            if directory == life.donor and path.name == "model.safetensors.index.json":
                continue  # of the donor, what was used
            whole = path.read_bytes()
            path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
            result = harness.run("verify", "--certificate", certificate)
            harness.expect_code(result, 3, path.relative_to(directory))
            path.write_bytes(whole)
    harness.expect_code(harness.run("verify", "--certificate", certificate, "--json"), 0)
    os.rename(out, own_model)
    harness.expect_code(harness.run("verify", "--certificate", certificate), 3, "out")
    os.rename(own_model, out)
    harness.expect_code(harness.run("verify", "--certificate", harness.work / "none.json"), 1, "none.json")
    (harness.work / "not.json").write_text("{}")
    harness.expect_code(harness.run("verify", "--certificate", harness.work / "not.json"), 1, "not.json")

    # The rest of its life, and what each verb says.
    harness.expect_code(harness.run("graft", out, "--from", life.donor, "--as", "law", "--in-place"), 0)
    result = harness.run("rollback", out, "--domain", "law", "--json")
    harness.expect_code(result, 0)
    harness.expect((json.loads(result.stdout)["from"], json.loads(result.stdout)["to"]) == (2, 1), result.stdout)
    result = harness.run("drop", out, "--domain", "law", "--json")
    harness.expect_code(result, 0)
    harness.expect(json.loads(result.stdout)["domains"] == ["alpha", "beta"], result.stdout)
    result = harness.run("gc", out, "--json")
    harness.expect_code(result, 0)
    harness.expect(len(json.loads(result.stdout)["removed"]) == 2, result.stdout)
    result = harness.run("log", out, "--json")
    verbs = [entry["verb"] for entry in json.loads(result.stdout)["lineage"]]
    harness.expect(verbs[-6:] == ["copy", "graft", "graft", "rollback", "drop", "gc"], verbs)
    harness.expect_code(harness.run("rollback", out, "--domain", "law"), 1, "'law'")
    for path, content in tree(harness.model).items():
        if path.suffix == ".safetensors":
            harness.expect(tree(out)[path] == content, f"{path} is not what it was before the graft")
    harness.expect_code(harness.run("verify", out, "--against", harness.model, "--no-certificate"), 0)


def main():
    harness = Harness()
    life = Life(harness)
    test_usage_and_help(life)
    test_whole_life(life)
    test_two_writers(life)
    test_memory(life)
    test_no_permission(life)
    test_full_disk(life)
    test_kills(life)
    test_kills_of_the_repair(life)
    test_failing_calls(life)
    harness.done()


if __name__ == "__main__":
    main()
