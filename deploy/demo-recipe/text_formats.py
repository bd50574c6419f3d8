"""Plain text out of the files of Debian packages: one function per format, each yields one text per file."""

import bz2
import glob
import gzip
import html
import lzma
import os
import re
import struct
import subprocess

UNPACKED = "x"
MAX_FILE_BYTES = 8 << 20

BLOCK_TAG = re.compile(
    r"</?(?:p|div|li|ul|ol|dl|dt|dd|h[1-6]|tr|td|th|table|br|section|article|blockquote|title|pre|figure|caption|hr)"
    r"\b[^>]*>", re.I)
DROPPED_TAG = re.compile(r"<(script|style|head|nav|footer|form|select|svg|noscript)\b.*?</\1>|<!--.*?-->", re.I | re.S)
NAVIGATION = re.compile(
    r'<div[^>]*class="[^"]*(?:sphinxsidebar|related|navheader|navfooter|headerlink|toc|footer|breadcrumbs)[^"]*"[^>]*>'
    r".*?</div>", re.I | re.S)
HEADER_LINK = re.compile(r'<a[^>]*class="headerlink".*?</a>', re.S)
PREFORMATTED = re.compile(r"<pre[^>]*>(.*?)</pre>", re.S | re.I)
TAG = re.compile(r"<[^>]+>")

MAN_HEADINGS = {"SH", "Sh", "SS", "Ss"}
MAN_BREAKS = {"PP", "P", "LP", "TP", "IP", "Pp", "It", "br", "nf", "fi", "sp", "RS", "RE"}
MAN_FONTS = set("B I BR IR RB RI BI IB SM Nm Fl Ar Xr Dv Fa Fn Va Er Em Pa Li Cm".split())


def read(path):
    """A file's text, unpacked; empty if it cannot be read."""
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(os.path.splitext(path)[1], open)
    try:
        with opener(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES)
    except (OSError, EOFError, lzma.LZMAError):
        return ""
    for encoding in ("utf-8", "gb18030" if "/zh" in path else "latin-1"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            pass
    return data.decode("utf-8", "ignore")


def html_text(text):
    text = NAVIGATION.sub(" ", DROPPED_TAG.sub(" ", text))
    text = HEADER_LINK.sub("", text)
    preformatted = []

    def set_aside(match):
        preformatted.append(html.unescape(TAG.sub("", match.group(1))))
        return f"\n\x01{len(preformatted) - 1}\x01\n"

    text = PREFORMATTED.sub(set_aside, text)
    text = re.sub(r"[ \t\r\n]+" if "\x01" in text else r"\s+", " ", text)
    text = html.unescape(TAG.sub("", BLOCK_TAG.sub("\n", text))).replace("\xb6", "")
    lines = []
    for line in text.split("\n"):
        line = line.strip()
        if not line:
            continue
        alone = re.match(r"^\x01(\d+)\x01$", line)
        if alone:
            lines.append(preformatted[int(alone.group(1))].strip("\n"))
        else:
            lines.append(re.sub(r"\x01(\d+)\x01", lambda match: preformatted[int(match.group(1))], line))
    return "\n".join(lines)


def man_text(text):
    lines, words = [], []

    def end_paragraph():
        if words:
            lines.append(re.sub(r"\s+", " ", " ".join(words)).strip())
            words.clear()

    for line in text.split("\n"):
        if line.startswith(("'\\\"", '.\\"')):
            continue
        if line.startswith((".", "'")):
            match = re.match(r"[.']\s*(\w+)\s*(.*)", line)
            if not match:
                continue
            macro, arguments = match.group(1), match.group(2).replace('"', "")
            if macro in MAN_HEADINGS:
                end_paragraph()
                lines.append(arguments)
            elif macro in MAN_BREAKS:
                end_paragraph()
                if macro in ("IP", "It") and arguments:
                    words.append(arguments)
            elif macro in MAN_FONTS:
                alternating = len(macro) == 2 and macro.isupper()
                words.append(arguments.replace(" ", "") if alternating else arguments)
        elif line.strip():
            words.append(line)
        else:
            end_paragraph()
    end_paragraph()
    text = "\n".join(lines)
    text = re.sub(r"\\f(?:\[\w*\]|\(..|.)", "", text)
    text = re.sub(r"\\s[+-]?\d", "", text)
    text = re.sub(r"\\\((lq|rq|dq)|\\\*\((lq|rq)", '"', text)
    text = text.replace("\\(bu", "*").replace("\\(em", "--").replace("\\(aq", "'")
    text = re.sub(r"\\\((..)", " ", text)
    return re.sub(r"\\[&|^%:/]", "", text).replace("\\-", "-").replace("\\e", "\\")


def fortune_text(text):
    return re.sub(r"\x1b\[[\d;]*m", "", re.sub(r"\n%\n", "\n\n", text))


def code_text(text):
    """Source code without its leading licence comment; empty if it looks generated."""
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    if not 200 <= len(text) <= 300000:
        return ""
    comment = re.match(r"\s*((?:/\*.*?\*/\s*)+|(?:[ ]*(?://|#)[^\n]*\n)+)", text, re.S)
    if comment and len(comment.group(1)) < 6000 and re.search(r"copyright|licen[cs]e|redistribut", comment.group(1), re.I):
        text = text[comment.end():]
    lines = text.split("\n")
    head = text[:20000]
    if (sum(len(line) > 180 for line in lines) > 0.03 * len(lines) or
            len(re.findall(r"\d", text)) > 0.15 * len(text) or
            sum(ord(character) > 127 for character in head) > 0.02 * len(head)):
        return ""
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(line.rstrip() for line in lines)).strip("\n")


def translation_pairs(path):
    """(original, translation) of a gettext .mo file."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:4] != struct.pack("<I", 0x950412DE):
        return
    count, originals, translations = struct.unpack_from("<3I", data, 8)

    def string(table, index):
        length, offset = struct.unpack_from("<2I", data, table + 8 * index)
        return data[offset:offset + length].split(b"\0")[0].decode("utf-8", "ignore")

    for index in range(count):
        original, translation = string(originals, index).split("\4")[-1], string(translations, index)
        if original and len(translation) >= 12:
            yield original, translation


def sword_texts(package):
    """One text per chapter of a module of the SWORD project (program mod2imp, package libsword-utils)."""
    root = os.path.join(UNPACKED, package, "usr/share/sword")
    with open(glob.glob(root + "/mods.d/*.conf")[0], errors="ignore") as file:
        module = re.search(r"\[(\w+)\]", file.read()).group(1)
    dump = subprocess.run(["mod2imp", module, "-r"], env=dict(os.environ, SWORD_PATH=root), capture_output=True, check=False)
    texts, verses, chapter = [], [], None
    for entry in dump.stdout.decode("utf-8", "ignore").split("\n$$$"):
        key, _, body = entry.partition("\n")
        key = key.replace("$$$", "").strip().rsplit(":", 1)[0]
        body = re.sub(r"<br ?/?>|<p ?/?>|<lb[^>]*>", "\n", body)
        body = html.unescape(TAG.sub(" ", re.sub(r"<(note|title)\b.*?</\1>", "", body)))
        body = re.sub(r"\{[^}]*\}", "", body)
        body = "\n".join(re.sub(r"[ \t]+", " ", line).strip() for line in body.split("\n") if line.strip())
        if key != chapter and verses:
            texts.append(chapter + "\n" + "\n".join(verses))
            verses = []
        chapter = key
        if body:
            verses.append(body)
    if verses:
        texts.append(chapter + "\n" + "\n".join(verses))
    return texts


def files_of(package, pattern):
    """Paths in a fixed order, so that the same packages give the same corpus."""
    wanted = re.compile(pattern)
    for folder, folders, names in os.walk(os.path.join(UNPACKED, package)):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if wanted.search(path) and os.path.isfile(path) and not os.path.islink(path):
                yield path


def texts_of(package, pattern, kind):
    """(folder, text) of each document; documents of one folder come in a fixed order."""
    if kind == "sword":
        return [("", text) for text in sword_texts(package)]
    if kind in ("translations", "originals"):
        side = 1 if kind == "translations" else 0

        def convert(path):
            return "\n".join(TAG.sub("", pair[side]) for pair in translation_pairs(path))
    else:
        of_text = {"html": html_text, "man": man_text, "plain": str, "fortune": fortune_text, "code": code_text}[kind]

        def convert(path):
            return of_text(read(path))
    return [(os.path.dirname(path), convert(path)) for path in files_of(package, pattern)]
