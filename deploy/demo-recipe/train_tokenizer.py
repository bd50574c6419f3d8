#!/usr/bin/env python3
"""Trains a byte-level BPE tokenizer with Qwen2's split, and writes tokenizer.json as Hugging Face reads it.

usage: train_tokenizer.py VOCAB_SIZE     where build_corpora.py wrote corpus/
"""

import collections
import heapq
import json
import random
import sys

import regex

SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
MEGABYTES = {"zh": 8, "en": 4, "cpp": 3, "python": 3}  # the diet: Chinese needs the most merges
MAX_DOCUMENT_CHARACTERS = 20000
MAX_WORD_BYTES = 60


def printable_bytes():
    """GPT-2's way to write any byte as a printable character."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + number) for number, byte in enumerate(others)}


def count_words():
    words = collections.Counter()
    for domain, megabytes in MEGABYTES.items():
        with open(f"corpus/{domain}.train.txt", encoding="utf-8") as file:
            documents = file.read().split("\n\0\n")
        random.shuffle(documents)
        size = 0
        for document in documents:
            document = document[:MAX_DOCUMENT_CHARACTERS]
            size += len(document.encode())
            words.update(regex.findall(SPLIT, document))
            if size > megabytes * 1e6:
                break
    return [(list(word.encode()), count) for word, count in words.items()
            if count >= 2 and 1 < len(word.encode()) <= MAX_WORD_BYTES]


def merge_in(word, pair, merged):
    result, position = [], 0
    while position < len(word):
        if tuple(word[position:position + 2]) == pair:
            result.append(merged)
            position += 2
        else:
            result.append(word[position])
            position += 1
    return result


def train(words, symbol_count):
    """The byte strings of all symbols, and the merges as pairs of symbols, the most frequent pair first."""
    words, counts = map(list, zip(*words))
    pair_counts, words_with = collections.Counter(), collections.defaultdict(set)
    for index, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pair_counts[pair] += counts[index]
            words_with[pair].add(index)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    symbols, merges = [bytes([byte]) for byte in range(256)], []
    while len(symbols) < symbol_count:
        count, pair = heapq.heappop(heap)
        if pair_counts.get(pair, 0) != -count:  # an old entry
            if pair_counts.get(pair, 0) > 0:
                heapq.heappush(heap, (-pair_counts[pair], pair))
            continue
        merged = len(symbols)
        symbols.append(symbols[pair[0]] + symbols[pair[1]])
        merges.append(pair)
        changes = collections.Counter()
        for index in words_with.pop(pair):
            before, after = words[index], merge_in(words[index], pair, merged)
            for other in zip(before, before[1:]):
                changes[other] -= counts[index]
            for other in zip(after, after[1:]):
                changes[other] += counts[index]
                words_with[other].add(index)
            words[index] = after
        for other, change in changes.items():
            pair_counts[other] += change
            if change > 0:
                heapq.heappush(heap, (-pair_counts[other], other))
        del pair_counts[pair]
    return symbols, merges


def main():
    random.seed(1)
    vocab_size = int(sys.argv[1])
    symbols, merges = train(count_words(), vocab_size - len(SPECIAL_TOKENS))
    characters = printable_bytes()

    def written(symbol):
        return "".join(characters[byte] for byte in symbols[symbol])

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": len(symbols) + number, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True} for number, content in enumerate(SPECIAL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}, byte_level]},
        "post_processor": None, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "vocab": {written(symbol): symbol for symbol in range(len(symbols))},
            "merges": [f"{written(first)} {written(second)}" for first, second in merges]}}
    with open("tokenizer.json", "w", encoding="utf-8") as file:
        json.dump(tokenizer, file, ensure_ascii=False)


if __name__ == "__main__":
    main()
