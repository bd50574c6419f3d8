#!/usr/bin/env python3
"""Golden files of the tokenizer tests: ids and texts as Hugging Face's `tokenizers` gives them.

    pip install tokenizers==0.23.3 jinja2==3.1.6
    make_tokenizer_golden.py                  writes tests/golden/tokenizer/
    make_tokenizer_golden.py --check          recomputes from the committed tokenizers and compares

Three tiny tokenizers are trained here, in the styles of GPT-2, Llama 3 and Qwen2; the fourth is the demo model's.
Each golden file holds, per string of strings.json and by the string's index:
  raw            ids with special tokens parsed, nothing added
  content        ids with special tokens taken as ordinary text, where they differ from `raw`
  added          ids with the post-processor's tokens, where they differ from `raw`
  decoded        the text of `raw`, where it differs from the string
  decoded_plain  the text of `raw` without special tokens, where it differs from `decoded`
"""
import argparse
import json
import pathlib
import random
import sys

import jinja2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "tokenizer"
DEMO = HERE.parent.parent / "deploy" / "demo"

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

SENTENCES = """
The quick brown fox jumps over the lazy dog.
It's what we've said; they'll go, I'm sure you'd agree that he can't.
IT'S WHAT WE'VE SAID; THEY'LL GO, I'M SURE YOU'D AGREE THAT HE CAN'T.
Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.
Portez ce vieux whisky au juge blond qui fume. Où est l'été, garçon ? « Là-bas ! »
El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío. ¿Qué? ¡Olé!
Pchnąć w tę łódź jeża lub ośm skrzyń fig.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Съешь же ещё этих мягких французских булок, да выпей чаю.
Чуєш їх, доцю, га? Кумедна ж ти, прощайся без ґольфів!
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.
דג סקרן שט בים מאוכזב ולפתע מצא חברה
نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ومغلف بجلد أزرق
یک متن فارسی با نیم‌فاصله می‌نویسم
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश करने वाले विष्णु
আমার সোনার বাংলা, আমি তোমায় ভালোবাসি।
யாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது எங்கும் காணோம்
తెలుగు భాష అజంత భాష
ಕನ್ನಡ ನಾಡು ನುಡಿ
മലയാളം ഒരു ഭാഷയാണ്
ਪੰਜਾਬੀ ਬੋਲੀ
ગુજરાતી ભાષા
සිංහල භාෂාව
เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน
ພາສາລາວ
ភាសាខ្មែរ
မြန်မာဘာသာ
བོད་ཡིག
ქართული ენა უნიკალურია
Հայերեն լեզու
አማርኛ ቋንቋ ነው
ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ
ᐃᓄᒃᑎᑐᑦ
ᚠᛇᚻ᛫ᛒᛦᚦ᛫ᚠᚱᚩᚠᚢᚱ
いろはにほへと ちりぬるを。カタカナ、ひらがな、漢字。
ﾊﾝｶｸｶﾀｶﾅ と 全角ＡＢＣ１２３
키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.
天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。
人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。
𠜎𠜱𠝹𠱓𠱸𠲖𠳏 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒸𝓊𝓇𝓈𝒾𝓋𝑒
ʁ̃ɔ̃ ʃə ʒɑ̃ t͡ʃ
""".strip().split("\n")

CODE = [
    "#include <vector>\n#include \"a.h\"\n\nint main(int argc, char** argv) {\n\treturn argc > 1 ? 0 : -1;\n}\n",
    "template <typename T, size_t N = 16>\nconstexpr auto f(T&& t) -> decltype(t) { return std::forward<T>(t); }",
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }  // dot product",
    "auto it = map.find(key); if (it != map.end()) return it->second;",
    "0x7fffffff 0b1010'1010 1e-5f 3.14159L 'c' \"s\\n\" R\"(raw)\" ::std <<= >>= && || != == ->* .*",
    "def f(x: int, *args, **kwargs) -> dict[str, list[int]]:\n    \"\"\"Doc.\"\"\"\n    return {k: [v] for k, v in kwargs.items()}\n",
    "    if not isinstance(x, (int, float)):\n        raise TypeError(f\"{x!r} isn't a number\")\n",
    "class A(B):\n\n    def __init__(self):\n        super().__init__()\n        self._x = lambda y: y ** 2\n\n\n",
    "SELECT a.id, COUNT(*) FROM t AS a WHERE a.x >= 10 GROUP BY 1;",
    "<div class=\"x\">&nbsp;<a href='https://example.org/?q=1&r=%20#top'>link</a></div>",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"é\": \"\\u00e9\"}}",
    "$ ls -la | grep '^d' && echo \"$HOME/${x:-y}\" > /dev/null 2>&1",
    "C:\\Users\\name\\file.txt\r\nD:\\x\r\n",
    "fn main() { println!(\"{:?}\", (0..10).map(|x| x * x).collect::<Vec<_>>()); }",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n- item\n  - nested\n\n```py\nx = 1\n```\n",
    "E = mc² ∑ᵢ xᵢ ≤ ∞ ∀x∈ℝ ∃y: x²+y²=1 ½ ¾ ⅓ √2≈1.414 α→β",
]

WHITESPACE = [
    "", " ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\n\n", "\r\n\r\n", " \n", "\n ", " \n ", "  \n  ", "\t\n\t", "a\n", "\na",
    "a \n", "a\n b", "a  b", "a   b", "a\tb", "a\t\tb", " a", "  a", "   a", "a ", "a  ", "a   ", "\n\n\na", "a\n\n\n", "  \n\n  a",
    "a\r\nb", "a\r\n\r\nb", "a \r\n b", "a\rb", "a\x0bb", "a\x0cb", "a\u00a0b", "\u00a0\u00a0a", "a\u3000b", "\u3000\u3000a",
    "a\u2003b", "a\u2028b", "a\u2029b", "a\u0085b", "\u0085\u0085", "a\u180eb", "\u180e a", "a\u200bb", "a\ufeffb", "\ufeffstart",
    "a\u1680b", "a\u202fb\u205fc", "x\x1cy\x1dz\x1e.\x1f", "\x00", "a\x00b", "\x7f\x01\x02", "    indented\n        more\n",
    " " * 17, " " * 64 + "x", "\n" * 20, "\t" * 9 + "x", " \t \t x", "x \t \n \t y", ". \n", "!\n\n", "!\r\n x", ")  \n\n(",
]

NUMBERS = [
    "0", "7", "42", "123", "1234", "12345", "123456", "1234567", "3.14", "1,234,567.89", "-5", "+5", "1e10", "2024-01-31",
    "12:34:56", "192.168.0.1", "0xDEADBEEF", "1st 2nd 3rd", "٠١٢٣٤٥", "१२३४", "①②③", "Ⅷ", "½", "x1y2z3", "a1", "1a", " 1", "  12",
    "１２３４", "²³", "10%", "$9.99", "№ 5", "1 000 000", "1\u00a0000", "000", "9" * 50,
]

EMOJI = [
    "😀", "😀😃😄", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️", "☺", "a😀b", " 😀 ", "😀\n😀", "1️⃣2️⃣", "👨🏿‍🚀 to the 🌕!", "🤷‍♀️🤦‍♂️",
    "🫠🫡🥹", "™©®", "→←↑↓", "▁▂▃", "│└─┐", "♥♠♦♣", "✓✗",
]

MARKS = [
    "e\u0301", "\u00e9", "e\u0301\u0301", "a\u0323\u0302", "a\u0302\u0323", "\u1eadx", "Z\u0351\u036b\u0343a\u0300l\u0334g\u0321o",
    "\u0301", "\u0301a", " \u0301", "n\u0303o", "\u1100\u1161\u11a8", "\uac01", "\u1100\u1161", "\uac00\u11a8", "\u212b", "\u00c5",
    "A\u030a", "\u2126", "\ufb01", "\u0344", "\u0f73\u0f71", "\u0915\u093c", "\u0958", "q\u0307\u0323", "\u1e9b\u0323", "\u0340",
    "\u2adc", "\u0308\u0301x", "s\u0323\u0307", "\u05e9\u05bc\u05c1", "\u0645\u0651\u064e", "\u0e01\u0e34\u0e4c", "Vie\u0323\u0302t Nam",
    "Vi\u1ec7t", "x\u20dd", "\ufdfa", "\u1f80\u0345", "\u03b1\u0313\u0301\u0345", "\U0001d15e", "\u0958\u093c", "Å ngström",
]

CONTRACTIONS = [
    "'s", "'S", "'t", "'T", "'re", "'RE", "'Re", "'ve", "'m", "'ll", "'LL", "'d", "'x", "''s", "it's", "IT'S", "don't", "we'll've",
    "'\u017f", "it'\u017fx", "\u2019s", "it\u2019s", "'sx", " 's", "rock'n'roll", "o'clock", "'re're", "K\u212a",
]

SPECIAL = [
    "<|endoftext|>", "a<|endoftext|>b", "<|endoftext|><|endoftext|>", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_end|>", " <|im_end|> ", "<|endoftext", "|endoftext|>", "<|endoftext|", "<<|endoftext|>>", "<|ENDOFTEXT|>",
    "< |endoftext|>", "<|pad|>", "<|begin_of_text|>", "<|begin_of_text|>x", "x<|begin_of_text|>", "<|end_of_text|>", "<tool>",
    "a<tool>b</tool>c", "<tool><tool>", "<tools>", "<tool_call>", "<|工具|>", "用<|工具|>吧", "Vie\u0323\u0302t<|endoftext|>Vi\u1ec7t",
    "<|endoftext|>\n", "\n<|endoftext|>", "<s>", "</s>", "[INST]", "<0x0A>", "<|im_end|>'s",
]

PUNCTUATION = [
    "!", "!!", "...", "…", "?!", "--", "—", "–", "\"quoted\"", "“quoted”", "(a)", "[b]", "{c}", "a,b;c:d", "a/b\\c", "a_b", "__init__",
    "a-b", "#tag", "@user", "a@b.org", "http://x.y/z?a=b&c=d#e", "*bold* _it_ `code`", "~/x", "^_^", "¯\\_(ツ)_/¯", "。、！？", "「」『』",
    "·", "§ 1", "a.b.c", "a . b", " .", ". ", ".a", "a.", "!a", "!\na", " !\n\n a", "=====", "-" * 40, "=" * 40 + "\n", "·" * 30,
]

LONG = ["a" * 300, "ab" * 150, "aA" * 50, "é" * 100, "中" * 100, "😀" * 50, "abc " * 60, "\u0301" * 40, "!?" * 60, "a\n" * 50, "한" * 60]


def random_strings(count):
    """Characters of many blocks, thrown together."""
    rng = random.Random(20231)
    blocks = [(0x20, 0x7e), (0x20, 0x7e), (0x09, 0x0d), (0xa0, 0x17f), (0x300, 0x36f), (0x370, 0x3ff), (0x400, 0x4ff), (0x590, 0x5ff),
              (0x600, 0x6ff), (0x900, 0x97f), (0xe00, 0xe7f), (0x1100, 0x11ff), (0x2000, 0x206f), (0x2190, 0x22ff), (0x3040, 0x30ff),
              (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0xff00, 0xffef), (0x1f300, 0x1f64f)]
    return ["".join(chr(rng.randint(*rng.choice(blocks))) for _ in range(rng.randint(1, 40))) for _ in range(count)]


def strings():
    texts = (SENTENCES + CODE + WHITESPACE + NUMBERS + EMOJI + MARKS + CONTRACTIONS + SPECIAL + PUNCTUATION + LONG +
             [" ".join(SENTENCES[:3]), "\n".join(SENTENCES[5:9]), "\r\n".join(CODE[:3])] + random_strings(60))
    return list(dict.fromkeys(texts))


def train(tokenizer, vocab_size, special):
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(SENTENCES * 3 + CODE * 4 + EMOJI + [" a"] * 20 + ["  \n"] * 5, trainer)


def gpt2_style():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, 700, ["<|endoftext|>"])
    return tokenizer


def llama3_style():
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, 800, [])
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=True), AddedToken("</tool>", normalized=False)])
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    # Tokens that merges alone can't reach: only ignore_merges finds them.
    described = json.loads(tokenizer.to_str())
    dropped = described["model"]["merges"][100:140]
    described["model"]["merges"] = [m for m in described["model"]["merges"] if m not in dropped]
    return Tokenizer.from_str(json.dumps(described))


def qwen2_style():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, 700, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_special_tokens(["<|工具|>"])
    tokenizer.add_tokens([AddedToken("Vi\u1ec7t", normalized=True), AddedToken("<tool_call>", normalized=False)])
    return tokenizer


def prefix_space_style():
    """Digits, add_prefix_space, and a template that adds a token on both sides."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Split("::", "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, 400, ["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return tokenizer


STYLES = {"gpt2": gpt2_style, "llama3": llama3_style, "qwen2": qwen2_style, "prefix_space": prefix_space_style}


def expectations(tokenizer, texts):
    raw = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    added = [tokenizer.encode(text).ids for text in texts]
    tokenizer.encode_special_tokens = True
    content = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    tokenizer.encode_special_tokens = False
    decoded = [tokenizer.decode(ids, skip_special_tokens=False) for ids in raw]
    plain = [tokenizer.decode(ids, skip_special_tokens=True) for ids in raw]

    def differing(values, base):
        return {str(i): value for i, (value, other) in enumerate(zip(values, base)) if value != other}

    # What a post-processor adds shows on any string: a few will do. Ours never doubles a BOS, so none that holds one.
    few = {i: value for i, value in differing(added, raw).items() if int(i) % 16 == 0 and "<" not in texts[int(i)]}
    return {"raw": raw, "content": differing(content, raw), "added": few, "decoded": differing(decoded, texts),
            "decoded_plain": differing(plain, decoded)}


def replacements():
    """Byte strings and what Python makes of them, with U+FFFD."""
    rng = random.Random(7)
    alphabet = [0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec, 0xed, 0xee, 0xef, 0xf0,
                0xf1, 0xf3, 0xf4, 0xf5, 0xff]
    byte_strings = [bytes([a]) for a in range(256)] + [bytes([a, b]) for a in alphabet for b in alphabet[3:]]
    byte_strings += [bytes(rng.choice(alphabet) for _ in range(rng.randint(3, 12))) for _ in range(400)]
    return [[data.hex(), data.decode("utf-8", "replace")] for data in byte_strings]


def chats():
    """The demo's chat template, rendered as Transformers renders it."""
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(config["chat_template"])
    conversations = [["hello"], ["You are terse.", "What is 2+2?"], ["a\n", "\nb", ""], ["<|endoftext|>", " x "], ["你好", "世界", "!"]]
    roles = ["system", "user", "assistant"]
    made = []
    for contents in conversations:
        messages = [{"role": roles[i % 3], "content": content} for i, content in enumerate(contents)]
        made.append({"messages": messages, "text": template.render(messages=messages)})
    return made


def dump(value):
    """One line per element of the outermost lists and objects."""
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"{json.dumps(k)}: {dump(v)}" for k, v in value.items()) + "\n}"
    if isinstance(value, list) and not all(isinstance(v, int) for v in value):
        return "[\n" + ",\n".join(json.dumps(v) for v in value) + "\n]"
    return json.dumps(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing them")
    check = parser.parse_args().check
    OUT.mkdir(exist_ok=True)
    if not check:
        for style, make in STYLES.items():
            (OUT / style).mkdir(exist_ok=True)
            (OUT / style / "tokenizer.json").write_text(make().to_str() + "\n")
    texts = strings()
    files = {"strings.json": texts, "replacement.json": replacements(), "chat.json": chats()}
    for name, directory in {"demo": DEMO, **{style: OUT / style for style in STYLES}}.items():
        files[f"{name}.expected.json"] = expectations(Tokenizer.from_file(str(directory / "tokenizer.json")), texts)
    failures = 0
    for name, value in files.items():
        path = OUT / name
        if not check:
            path.write_text(dump(value) + "\n")
        elif path.read_text() != dump(value) + "\n":
            failures += 1
            print(f"{path}: differs", file=sys.stderr)
    print(f"{len(texts)} strings, {len(files)} files, {failures} differ")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
