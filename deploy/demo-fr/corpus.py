#!/usr/bin/env python3
"""French text for the domain `fr`, from Debian packages; training, calibration and evaluation from different sources.

usage: corpus.py OUT     in a folder of its own: fetches packages into ./debs and unpacks them into ./x (150 MB)

Writes OUT/train/PACKAGE.jsonl and OUT/calibration/PACKAGE.jsonl, a document {"text"} per line, and OUT/eval/fr.jsonl in
the form of deploy/demo/eval. Lines that are no French prose, and lines that came before, are left out; so are documents
that share a run of 50 tokens with a text of the evaluation. (Programs: apt-get, dpkg; PyPI's `tokenizers`.)
"""

import hashlib
import json
import pathlib
import re
import sys

from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "demo-recipe"), str(HERE.parents[1] / "tests" / "bench")]

from build_corpora import is_prose, line_key  # noqa: E402
from fold_texts import fetch, runs_of, shared_runs  # noqa: E402
from sources import HTML  # noqa: E402
from text_formats import texts_of  # noqa: E402

SOURCES = {  # no two splits have a Debian source package in common
    "eval": [("aptitude-doc-fr", HTML, "html"), ("maint-guide-fr", HTML, "html"), ("texworks-help-fr", HTML, "html")],
    "calibration": [
        ("developers-reference-fr", HTML, "html"),
        ("gosa-help-fr", HTML, "html"),
        ("debian-faq-fr", HTML, "html"),
    ],
    "train": [
        ("manpages-fr", r"/man/fr/", "man"),
        ("manpages-fr-dev", r"/man/fr/", "man"),
        ("libreoffice-help-fr", HTML, "html"),
        ("kicad-doc-fr", HTML, "html"),
        ("lilypond-doc-html-fr", r"\.fr\.html$", "html"),
        ("debian-reference-fr", HTML, "html"),
        ("debian-edu-doc-fr", HTML, "html"),
    ],
}
FRENCH = set(
    "au aux avec ce ces cette comme dans de des du elle en est et il la le les leur mais ne nous on ou par pas "
    "plus pour que qui sa se ses si son sont sous sur un une vous à être".split()
)
ENGLISH = set(
    "a an and are as at be by can for from has have if in is it not of or that the this to was when which will "
    "with you your".split()
)
WORD = re.compile(r"[^\W\d_]+")
EVAL_BYTES = 80000
EXCERPT_CHARACTERS = 4000  # of a document of the evaluation
LEAST_CHARACTERS = 400  # of a document


def is_french(line):
    """Prose with more French than English function words; short lines may have none of either."""
    if not is_prose("en", line):
        return False
    words = [word.lower() for word in WORD.findall(line)]
    french, english = (sum(word in language for word in words) for language in (FRENCH, ENGLISH))
    return french > english and french >= 0.1 * len(words) if len(words) > 5 else french >= english


def documents_of(source, seen):
    """Each document's French lines that none before had."""
    for _, text in texts_of(*source):
        lines = []
        for line in text.split("\n"):
            line = line.rstrip()
            key = line_key("fr", line.strip())
            if not is_french(line.strip()) or key in seen:
                continue
            if key is not None:
                seen.add(key)
            lines.append(line)
        text = "\n".join(lines).replace("\0", "").encode("utf-8", "ignore").decode().strip()
        if len(text) >= LEAST_CHARACTERS:
            yield text


def build_eval(documents):
    """deploy/demo/eval's form: excerpts in order of the documents' sha256, the packages in turn."""
    queues = {
        package: sorted((hashlib.sha256(text.encode()).hexdigest(), text) for text in texts)
        for package, texts in documents.items()
    }
    chosen, size = [], 0
    while size < EVAL_BYTES and any(queues.values()):
        for package, queue in queues.items():
            if queue:
                digest, text = queue.pop(0)
                chosen.append({"package": package, "sha256": digest, "text": text[:EXCERPT_CHARACTERS]})
                size += len(chosen[-1]["text"].encode())
    return chosen


def write(path, documents):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents), encoding="utf-8"
    )


def main():
    out = pathlib.Path(sys.argv[1])
    for folder in ("debs", "x"):
        pathlib.Path(folder).mkdir(exist_ok=True)
    tokenizer = Tokenizer.from_file(str(HERE.parent / "demo" / "tokenizer.json"))
    seen, forbidden = set(), set()
    for split, sources in SOURCES.items():
        documents = {}
        for source in sources:
            fetch(source[0])
            documents[source[0]] = [
                text for text in documents_of(source, seen) if not shared_runs(tokenizer, text, forbidden)
            ]
            size = sum(len(text.encode()) for text in documents[source[0]])
            print(
                f"{split:12} {source[0]:24} {len(documents[source[0]]):5} documents, {size / 1e6:6.2f} MB", flush=True
            )
        if split == "eval":
            chosen = build_eval(documents)
            write(out / "eval" / "fr.jsonl", chosen)
            for document in chosen:
                forbidden |= runs_of(tokenizer.encode(document["text"], add_special_tokens=False).ids)
        else:
            for package, texts in documents.items():
                write(out / split / f"{package}.jsonl", [{"text": text} for text in texts])


if __name__ == "__main__":
    main()
