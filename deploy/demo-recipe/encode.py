#!/usr/bin/env python3
"""Encodes the corpora: data/DOMAIN.{train,val}.bin, token ids as u16, <|endoftext|> after each document.

usage: encode.py MEGABYTES     how much of each domain's train split; where train_tokenizer.py wrote tokenizer.json
"""

import os
import random
import sys

import numpy as np
from tokenizers import Tokenizer

from model import DOMAINS

MAX_DOCUMENT_CHARACTERS = 40000
VAL_BYTES = 600000


def main():
    os.makedirs("data", exist_ok=True)
    tokenizer = Tokenizer.from_file("tokenizer.json")
    end = tokenizer.token_to_id("<|endoftext|>")
    for domain in DOMAINS:
        for split, max_bytes in (("train", int(sys.argv[1]) * 1000000), ("val", VAL_BYTES)):
            with open(f"corpus/{domain}.{split}.txt", encoding="utf-8") as file:
                documents = [document for document in file.read().split("\n\0\n") if document.strip()]
            random.seed(7)
            random.shuffle(documents)
            ids, size = [], 0
            for document in documents:
                document = document[:MAX_DOCUMENT_CHARACTERS]
                size += len(document.encode())
                ids += tokenizer.encode(document, add_special_tokens=False).ids + [end]
                if size > max_bytes:
                    break
            np.array(ids, np.uint16).tofile(f"data/{domain}.{split}.bin")
            print(f"{domain} {split}: {size} bytes, {len(ids)} tokens", flush=True)


if __name__ == "__main__":
    main()
