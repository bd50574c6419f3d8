#!/usr/bin/env python3
"""Clean, deduplicated text per domain, out of the packages that fetch.sh unpacked.

usage: build_corpora.py [DOMAIN...]     in the folder where fetch.sh ran

Writes corpus/DOMAIN.{train,val}.txt: documents, each followed by a line with one NUL character; and
corpus/DOMAIN.heldout.jsonl: those documents of the val split that every build of the corpus holds out, one
{"package", "sha256", "text"} per line. The split depends on the md5 of a document's first 400 characters, and these on
which of several equal lines was met first. The committed weights were trained on a corpus whose folders had been walked
in the order of a file system; so a document counts as held out if it is no piece of a longer one, and no line at its
beginning also stands in another folder of the package where it was met first.
"""

import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys

from sources import SOURCES
from text_formats import UNPACKED, texts_of

OUT = "corpus"
CODE_DOMAINS = ("cpp", "python")
CJK = re.compile("[\u4e00-\u9fff]")
PIECE_CHARACTERS = 100000  # longer documents are cut, so that the split is even
SPLIT_CHARACTERS = 400  # of a piece: their md5 decides whether it is held out
ONE_IN = 50  # pieces are held out


def md5(text):
    return hashlib.md5(text.encode("utf-8", "ignore"))


def documents_of(source):
    package = source[0]
    return package, texts_of(*source) if os.path.isdir(os.path.join(UNPACKED, package)) else []


def simplified(documents):
    """Traditional to simplified Chinese."""
    if not documents:
        return []
    mark = "\n@@@@\n"
    text = mark.join(text for _, text in documents).encode("utf-8", "ignore")
    result = subprocess.run(["opencc", "-c", "tw2sp.json"], input=text, capture_output=True, check=True)
    texts = result.stdout.decode("utf-8", "ignore").split(mark)
    return [(folder, text) for (folder, _), text in zip(documents, texts, strict=True)]


def is_prose(domain, line):
    """Whether a line without its margins is text of the domain's language rather than a table, a path or code."""
    if domain == "zh":
        count = len(CJK.findall(line))
        return count >= 4 and count >= 0.25 * len(line.replace(" ", ""))
    if domain == "en":
        if len(line) < 20:
            return bool(line) and not CJK.search(line)
        letters = sum(character.isalpha() or character == " " for character in line)
        return letters >= 0.7 * len(line) and not CJK.search(line)
    return True


def line_key(domain, line):
    """What two lines have in common that are called duplicates; none for short lines, which may repeat."""
    if len(line) < 12 and domain != "zh":
        return None
    return hash(re.sub(r"[\W\d_]+", "", line))


class Deduplicator:
    """Passes each file of code and each line of prose once."""

    def __init__(self, domain):
        self.domain = domain
        self.first_met = {}  # key -> (source, folder)
        self.unsettled = set()  # keys that another order of folders would have let pass elsewhere

    def is_new(self, key, place):
        if key not in self.first_met:
            self.first_met[key] = place
            return True
        source, folder = self.first_met[key]
        if source == place[0] and folder != place[1]:
            self.unsettled.add(key)
        return False

    def code(self, text, place):
        key = md5(re.sub(r"\s+", "", text)).digest()
        return (text, [key]) if text and self.is_new(key, place) else ("", [])

    def prose(self, text, place):
        """The text that is left, and the keys of the lines that its first SPLIT_CHARACTERS depend on."""
        lines, head_keys, length = [], [], 0
        for line in text.split("\n"):
            line = line.rstrip()
            if not is_prose(self.domain, line.strip()):
                continue
            key = line_key(self.domain, line.strip())
            if key is not None and length <= SPLIT_CHARACTERS:
                head_keys.append(key)
            if key is None or self.is_new(key, place):
                lines.append(line)
                length += len(line) + 1
        text = "\n".join(lines).strip()
        return (text, head_keys) if len(text) >= (60 if self.domain == "zh" else 200) else ("", [])

    def __call__(self, text, place):
        return self.code(text, place) if self.domain in CODE_DOMAINS else self.prose(text, place)


def build(domain, pool):
    deduplicate = Deduplicator(domain)
    candidates = []
    with (open(f"{OUT}/{domain}.train.txt", "w", encoding="utf-8", errors="ignore") as train,
          open(f"{OUT}/{domain}.val.txt", "w", encoding="utf-8", errors="ignore") as val):
        for source, (package, documents) in enumerate(pool.imap(documents_of, SOURCES[domain])):
            characters, pieces = 0, 0
            if domain == "zh":
                documents = simplified(documents)
            for folder, text in documents:
                text, head_keys = deduplicate(text, (source, folder))
                for start in range(0, len(text), PIECE_CHARACTERS):
                    piece = text[start:start + PIECE_CHARACTERS]
                    is_held_out = int(md5(piece[:SPLIT_CHARACTERS]).hexdigest(), 16) % ONE_IN == 0
                    piece = piece.replace("\0", "")
                    (val if is_held_out else train).write(piece + "\n\0\n")
                    characters += len(piece)
                    pieces += 1
                    if is_held_out and len(text) <= PIECE_CHARACTERS:
                        candidates.append((package, piece, head_keys))
            print(f"{domain:7} {package:28} {characters / 1e6:7.2f} M characters in {pieces} documents", flush=True)
    held_out = [(package, text) for package, text, keys in candidates if not deduplicate.unsettled.intersection(keys)]
    with open(f"{OUT}/{domain}.heldout.jsonl", "w", encoding="utf-8") as file:
        for package, text in held_out:
            text = text.encode("utf-8", "ignore").decode()
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            file.write(json.dumps({"package": package, "sha256": sha256, "text": text}, ensure_ascii=False) + "\n")
    print(f"{domain:7} held out by every build: {len(held_out)} of {len(candidates)}", flush=True)


def main():
    os.makedirs(OUT, exist_ok=True)
    with multiprocessing.Pool(2) as pool:
        for domain in sys.argv[1:] or SOURCES:
            build(domain, pool)


if __name__ == "__main__":
    main()
