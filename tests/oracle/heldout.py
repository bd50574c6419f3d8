#!/usr/bin/env python3
"""Chooses held-out documents: the prompts of tests/golden/logits and the texts of deploy/demo/eval.

usage: heldout.py CORPUS_FOLDER      a folder in which deploy/demo-recipe/build_corpora.py wrote DOMAIN.heldout.jsonl

Documents are taken in order of the sha256 of their text (UTF-8). A prompt is <|endoftext|> and the first 127 tokens of
each of the first 20 documents of at least 32 tokens. An evaluation text is, per domain, the first 4,000 characters of
each document from a package whose licence is on the list below, until 80,000 bytes are reached; the prompts' documents
among them.
"""

import json
import pathlib
import sys

from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "deploy" / "demo"

PROMPTS = 20  # per domain
MIN_TOKENS = 32
MAX_PROMPT_TOKENS = 128
EXCERPT_CHARACTERS = 4000
TEXT_BYTES = 80000  # per domain

# Packages whose texts may be passed on under terms that eval/README.md can name in a line; see there.
FREELY_GIVEN = {
    "zh": "debian-handbook libreoffice-help-zh-cn libreoffice-help-zh-tw linux-doc-6.1 debian-reference-zh-cn "
          "debian-reference-zh-tw gnome-user-docs installation-guide-amd64".split(),
    "en": "sword-comm-tdavid sword-comm-scofield sword-text-web python3.11-doc postgresql-doc-15 sqlite3-doc "
          "libreoffice-help-en-us apache2-doc python-django-doc debian-handbook".split(),
    "cpp": "libboost1.74-dev libabsl-dev llvm-14-dev googletest catch2 libdlib-dev libvtk9-dev nlohmann-json3-dev "
           "libfmt-dev libtorch-dev libpcl-dev libcrypto++-dev".split(),
    "python": "libpython3.11-stdlib libpython3.11-testsuite python3-django python3-sympy python3-scipy python3-pandas "
              "python3-sklearn python3-statsmodels python3-networkx python3-twisted python3-sqlalchemy python3-nltk "
              "python3-astropy python3-nova python3-neutron python3-pip yt-dlp".split(),
}


def main():
    corpus = pathlib.Path(sys.argv[1])
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    begin = tokenizer.token_to_id("<|endoftext|>")
    prompts = []
    for domain, packages in FREELY_GIVEN.items():
        documents = [json.loads(line) for line in (corpus / f"{domain}.heldout.jsonl").open(encoding="utf-8")]
        documents.sort(key=lambda document: document["sha256"])
        chosen = 0
        for document in documents:
            ids = tokenizer.encode(document["text"], add_special_tokens=False).ids
            if len(ids) < MIN_TOKENS or chosen == PROMPTS:
                continue
            chosen += 1
            prompts.append({"domain": domain, "package": document["package"], "sha256": document["sha256"],
                            "head": document["text"][:60], "ids": [begin] + ids[:MAX_PROMPT_TOKENS - 1]})
        size = 0
        with (DEMO / "eval" / f"{domain}.jsonl").open("w", encoding="utf-8") as file:
            for document in documents:
                if document["package"] in packages and size < TEXT_BYTES:
                    text = document["text"][:EXCERPT_CHARACTERS]
                    size += len(text.encode())
                    line = {"package": document["package"], "sha256": document["sha256"], "text": text}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(f"{domain}: {len(documents)} held-out documents, {chosen} prompts, {size} bytes of text")
    lines = ",\n".join(json.dumps(prompt, ensure_ascii=False) for prompt in prompts)
    path = ROOT / "tests" / "golden" / "logits" / "prompts.json"
    path.write_text('{"prompts": [\n' + lines + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
