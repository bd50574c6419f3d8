#!/usr/bin/env python3
"""What growing a model keeps, adds and costs: the rows of the README's table of lifelong learning.

usage: lifelong.py --donor DIR --as NAME --held-out FILE [--scratch DIR] [--text FILE ...] [--replace en --by cpp]
                   [--out run.json]

In copies of the model (deploy/demo): grafts the donor's domain in and asks `moe-extract verify` whether every old
domain kept every bit; replaces a domain by another and asks the same; measures texts (`moe-extract report --text`)
under every domain of each: deploy/demo/eval, the donor's held-out text, the texts of --text, and a mix of all of
deploy/demo/eval, document by document in turn, whose domain nobody tells. Perplexities of old domains are compared as
numbers, not as printed. What training took is what scion.grow recorded beside the donor, and beside a run from scratch
(--scratch), which is the measure of forward transfer. Prints the table in Markdown; fails if what must not change has
changed.
"""

import argparse
import csv
import json
import math
import pathlib
import shutil
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "deploy" / "demo"
MIX = "mix"


class Tool:
    def __init__(self, program, work):
        self.program, self.work, self.pages = program, work, 0

    def run(self, *arguments):
        result = subprocess.run([self.program, *map(str, arguments)], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise SystemExit(f"moe-extract {' '.join(map(str, arguments))}: {result.stderr}{result.stdout}")
        return result.stdout

    def graft(self, model, donor, name):
        """A copy of the model with the donor's domain as `name`, and what verify certifies of it."""
        grafted = self.work / f"{name}-grafted"
        self.run("graft", model, "--from", donor, "--as", name, "-o", grafted)
        certificate = json.loads(self.run("verify", grafted, "--against", model, "--donor", donor, "--as", name,
                                          "--no-certificate", "--json"))
        assert certificate["result"] == "identical", certificate
        return grafted, certificate

    def perplexities(self, model, texts):
        """{text: {"scored_tokens": n, "perplexity": {domain: x}}}"""
        self.pages += 1
        page = self.work / f"{self.pages}.html"
        figures = json.loads(self.run("report", model, "--text", texts, "-o", page, "--json"))
        return {row["text"]: row for row in figures["matrix"]["rows"]}


def documents(path):
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line]


def write_texts(folder, arguments):
    """Folder of texts, a file for each row. The names of the old domains."""
    folder.mkdir()
    of_domains = {path.stem: documents(path) for path in sorted((arguments.model / "eval").glob("*.jsonl"))}
    for name, lines in of_domains.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    turns = max(map(len, of_domains.values()))
    mixed = [lines[turn] for turn in range(turns) for lines in of_domains.values() if turn < len(lines)]
    (folder / f"{MIX}.jsonl").write_text("\n".join(mixed) + "\n", encoding="utf-8")
    shutil.copy(arguments.held_out, folder / f"{arguments.name}{arguments.held_out.suffix}")
    for text in arguments.text:
        shutil.copy(text, folder / text.name)
    return list(of_domains)


def must_be_equal(before, after, domains):
    """The number of perplexities compared, of every text under `domains`."""
    different = [(text, domain) for text in before for domain in domains
                 if before[text]["perplexity"][domain] != after[text]["perplexity"][domain]]
    if different:
        raise SystemExit(f"perplexities that changed (text, domain): {different}")
    return len(before) * len(domains)


def folder_bytes(model):
    names = ["trunk.safetensors", "config.json", "model.safetensors.index.json", "scion.lock.json"]
    return sum(path.stat().st_size for path in [*(model / "domains").iterdir(), *(model / name for name in names)])


def told_by_document(rows, domains):
    """Perplexity of the mix if each document's domain were told: from the rows of which it is made."""
    tokens = sum(rows[domain]["scored_tokens"] for domain in domains)
    assert tokens == rows[MIX]["scored_tokens"]
    return math.exp(sum(rows[domain]["scored_tokens"] * math.log(rows[domain]["perplexity"][domain])
                        for domain in domains) / tokens)


def curve(run):
    """What scion.grow wrote of a run: [(step, tokens, seconds, held-out loss)]"""
    with open(run / "training" / "loss.csv", newline="", encoding="utf-8") as file:
        return [(int(row["step"]), int(row["tokens"]), float(row["seconds"]), float(row["held_out_loss"]))
                for row in csv.DictReader(file)]


def growth(donor, base_rows, grown_rows, name, old):
    """Tokens and seconds of the training, and what it gained on held-out text."""
    record = json.loads((donor / "training" / "record.json").read_text())
    best_old = min(base_rows[name]["perplexity"][domain] for domain in old)
    return {"steps": record["result"]["steps"], "tokens": record["result"]["tokens"],
            "seconds": record["result"]["seconds"], "best_old_domain": best_old,
            "perplexity": grown_rows[name]["perplexity"][name]}


def transfer(donor, scratch):
    """The step at which the donor's run was as good as the run from scratch ever was, on the held-out text of both."""
    step_of_scratch, _, _, loss = min(curve(scratch), key=lambda row: row[3])
    step = next((row[0] for row in curve(donor) if row[3] <= loss), None)
    return {"scratch_steps": step_of_scratch, "scratch_loss": loss, "steps": step,
            "loss": min(row[3] for row in curve(donor))}


def measure(arguments, work):
    tool = Tool(arguments.moe_extract, work)
    config = json.loads((arguments.model / "config.json").read_text())
    texts = work / "texts"
    old = write_texts(texts, arguments)
    base = tool.perplexities(arguments.model, texts)

    grown, retention = tool.graft(arguments.model, arguments.donor, arguments.name)
    after = tool.perplexities(grown, texts)
    result = {"model": arguments.model.name, "domain": arguments.name, "default_domain": config["default_domain"],
              "retention": {"tensors": retention["tensors"], "positions": retention["positions"],
                            "prompts": retention["prompts"], "perplexities": must_be_equal(base, after, old)}}

    cut = work / "replacement"
    tool.run("slice", arguments.model, "--domain", arguments.by, "-o", cut)
    replaced, backward = tool.graft(arguments.model, cut, arguments.replace)
    replaced_rows = tool.perplexities(replaced, texts)
    others = [domain for domain in old if domain != arguments.replace]
    own = base[arguments.replace]["perplexity"][arguments.replace]
    result["backward"] = {"replaced": arguments.replace, "by": arguments.by, "tensors": backward["tensors"],
                          "positions": backward["positions"],
                          "perplexities": must_be_equal(base, replaced_rows, others),
                          "own_text": [own, replaced_rows[arguments.replace]["perplexity"][arguments.replace]]}

    file = next((grown / "domains").glob(f"{arguments.name}.*safetensors"))
    result["capacity"] = {"domain_file_bytes": file.stat().st_size,
                          "added_bytes": folder_bytes(grown) - folder_bytes(arguments.model),
                          "trunk_bytes": (arguments.model / "trunk.safetensors").stat().st_size}

    folder = pathlib.Path(arguments.donor.split("@")[0])
    if (folder / "training").is_dir():
        result["growth"] = growth(folder, base, after, arguments.name, old)
    if arguments.scratch:
        result["forward"] = transfer(folder, arguments.scratch)

    result["no_boundary"] = {"told_by_document": told_by_document(base, old),
                             "texts": {text: after[text]
                                       for text in [MIX, arguments.name, *(text.stem for text in arguments.text)]}}
    return result


def table(result):
    name, default = result["domain"], result["default_domain"]
    kept, back, size = result["retention"], result["backward"], result["capacity"]
    lines = ["| | measured |", "|---|---|",
             f"| knowledge retention | `{name}` grafted in: every old domain's logits have the same bits as before, "
             f"and `{name}`'s the donor's ({kept['tensors']} tensors, {kept['positions']:,} positions of {kept['prompts']} "
             f"prompts); {kept['perplexities']} perplexities of old domains are the same numbers |",
             f"| backward transfer | `{back['replaced']}` replaced by `{back['by']}`'s experts: its own text goes from "
             f"{back['own_text'][0]:.1f} to {back['own_text'][1]:.1f}; to the other domains "
             f"nothing happens ({back['positions']:,} positions bit for bit, {back['perplexities']} perplexities) |",
             f"| capacity | {size['added_bytes']:,} bytes for a domain more ({size['domain_file_bytes']:,} its file; "
             f"the trunk, shared, has {size['trunk_bytes']:,}) |"]
    if grown := result.get("growth"):
        lines.append(f"| online growth | {grown['tokens']:,} tokens in {grown['steps']} steps and "
                     f"{grown['seconds']:.0f} s: held-out text of `{name}` from {grown['best_old_domain']:.1f} "
                     f"(the best old domain) to {grown['perplexity']:.1f} |")
    if forward := result.get("forward"):
        lines.append(f"| forward transfer | what {forward['scratch_steps']} steps from scratch reach "
                     f"(held-out loss {forward['scratch_loss']:.3f}) takes {forward['steps']} steps from the nearest "
                     f"domain; at the end {forward['loss']:.3f} |")
    for text, row in result["no_boundary"]["texts"].items():
        known = row["perplexity"]
        best = min((domain for domain in known if domain != text), key=known.get)
        of_all = ", ".join(f"`{domain}` {value:.1f}" for domain, value in known.items())
        told = (f"; each document under its own domain: {result['no_boundary']['told_by_document']:.1f}"
                if text == MIX else "")
        lines.append(f"| no task boundary: text `{text}` | {of_all}; by default `{default}` {known[default]:.1f}, "
                     f"best {'other ' if text == name else ''}`{best}` {known[best]:.1f}{told} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--donor", required=True, help="a model that has the new domain, DIR or DIR@DOMAIN")
    parser.add_argument("--as", dest="name", required=True, help="the new domain's name")
    parser.add_argument("--held-out", type=pathlib.Path, required=True, help="text of the new domain")
    parser.add_argument("--scratch", type=pathlib.Path, help="a run of scion.grow as the donor's, but from scratch")
    parser.add_argument("--text", type=pathlib.Path, action="append", default=[], help="a text of no domain")
    parser.add_argument("--model", type=pathlib.Path, default=DEMO, help="with texts in eval/")
    parser.add_argument("--replace", default="en", help="the domain that is replaced")
    parser.add_argument("--by", default="cpp", help="the domain that takes its place")
    parser.add_argument("--out", type=pathlib.Path, help="all figures in JSON")
    parser.add_argument("--moe-extract", default=str(ROOT / "build/release/bin/moe-extract"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        result = measure(arguments, pathlib.Path(work))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
