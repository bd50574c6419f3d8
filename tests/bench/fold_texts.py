#!/usr/bin/env python3
"""Calibration texts for folding the demo's domains, from Debian packages that deploy/demo/eval has no text of.

usage: fold_texts.py OUT [--bytes N]     in a folder of its own: fetches packages into ./debs and unpacks them into ./x

Writes OUT/DOMAIN.txt. A text is made of the first 4,000 characters of documents, the packages in turn, in order of the
documents' sha256, until N bytes are reached. No text shares a run of 50 tokens with deploy/demo/eval/DOMAIN.jsonl:
documents that do are left out, and how many is printed. (Programs: apt-get, dpkg, mod2imp of libsword-utils; PyPI's
`tokenizers`.)
"""

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys

from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "deploy" / "demo"
sys.path.insert(0, str(ROOT / "deploy" / "demo-recipe"))

from build_corpora import is_prose  # noqa: E402
from sources import SOURCES  # noqa: E402
from text_formats import texts_of  # noqa: E402

PACKAGES = {
    "zh": "kicad-doc-zh maint-guide-zh-cn manpages-zh debian-edu-doc-zh-cn debian-faq-zh-cn gitmagic gimp-help-zh-cn "
          "lilypond-doc-html-zh linuxcnc-doc-zh-cn krita-l10n".split(),
    "en": "sqlite3-doc perl-doc git-doc apache2-doc python-django-doc manpages developers-reference jargon-text "
          "libreoffice-help-en-us anarchism sword-dict-naves sword-text-kjv".split(),
    "cpp": "catch2 libcrypto++-dev nlohmann-json3-dev libfmt-dev libeigen3-dev llvm-14-dev libcgal-dev libfltk1.3-dev "
           "libstdc++-12-dev qtbase5-examples".split(),
    "python": "python3-scipy python3-pip mercurial-common python3-statsmodels python3-matplotlib "
              "python3-breezy".split(),
}
MORE_SOURCES = {"sword-text-kjv": ("sword-text-kjv", "", "sword")}  # no part of the demo's corpus
EXCERPT_CHARACTERS = 4000
MIN_CHARACTERS = 400
RUN_TOKENS = 50


def runs_of(ids):
    """All runs of RUN_TOKENS tokens."""
    return {tuple(ids[begin:begin + RUN_TOKENS]) for begin in range(len(ids) - RUN_TOKENS + 1)}


def shared_runs(tokenizer, text, forbidden):
    """How many runs of RUN_TOKENS tokens of the text are among the forbidden ones."""
    return len(runs_of(tokenizer.encode(text, add_special_tokens=False).ids) & forbidden)


def eval_runs(tokenizer, domain):
    """The runs of all texts of deploy/demo/eval/DOMAIN.jsonl; and the packages that they are from."""
    runs, packages = set(), set()
    for line in (DEMO / "eval" / f"{domain}.jsonl").open(encoding="utf-8"):
        document = json.loads(line)
        runs |= runs_of(tokenizer.encode(document["text"], add_special_tokens=False).ids)
        packages.add(document["package"])
    return runs, packages


def fetch(package):
    if not list(pathlib.Path("debs").glob(f"{package}_*.deb")):
        subprocess.run(["apt-get", "-o", "APT::Sandbox::User=root", "download", "-q", package], cwd="debs", check=True)
    if not pathlib.Path("x", package).is_dir():
        subprocess.run(["dpkg", "-x", next(pathlib.Path("debs").glob(f"{package}_*.deb")), f"x/{package}"], check=True)


def documents_of(package, domain):
    """Excerpts in order of their documents' sha256."""
    source = MORE_SOURCES.get(package) or next(entry for entry in SOURCES[domain] if entry[0] == package)
    found = {}
    for _, text in texts_of(*source):
        if domain in ("zh", "en"):
            text = "\n".join(line.rstrip() for line in text.split("\n") if is_prose(domain, line.strip()))
        text = text.replace("\0", "").encode("utf-8", "ignore").decode().strip()
        if len(text) >= MIN_CHARACTERS:
            found[hashlib.sha256(text.encode()).hexdigest()] = text[:EXCERPT_CHARACTERS]
    return [found[key] for key in sorted(found)]


def build(domain, out, text_bytes, tokenizer):
    forbidden, eval_packages = eval_runs(tokenizer, domain)
    assert not eval_packages & set(PACKAGES[domain]), eval_packages
    queues = []
    for package in PACKAGES[domain]:
        fetch(package)
        queues.append(documents_of(package, domain))
    chosen, size, left_out, turn = [], 0, 0, 0
    while size < text_bytes and any(queues):
        queue = queues[turn % len(queues)]
        turn += 1
        if not queue:
            continue
        text = queue.pop(0)
        if shared_runs(tokenizer, text, forbidden):
            left_out += 1
            continue
        chosen.append(text)
        size += len(text.encode())
    joined = "\n\n".join(chosen) + "\n"
    assert not shared_runs(tokenizer, joined, forbidden)
    (out / f"{domain}.txt").write_text(joined, encoding="utf-8")
    print(f"{domain}: {len(chosen)} documents, {size} bytes; left out for a run of {RUN_TOKENS} tokens that "
          f"deploy/demo/eval has: {left_out}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--bytes", type=int, default=1200000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pathlib.Path("debs").mkdir(exist_ok=True)
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    for domain in PACKAGES:
        build(domain, arguments.out, arguments.bytes, tokenizer)


if __name__ == "__main__":
    main()
