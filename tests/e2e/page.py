"""A page of `moe-extract report`, read by Python's HTML parser; and the colours of its style sheet."""

import html.parser
import re

VOID = {"meta", "br", "img", "link", "input", "hr"}
# What may lead out of a page.
FETCHING = {"src", "href", "srcset", "data", "action", "poster", "xlink:href", "background", "formaction"}


class Page(html.parser.HTMLParser):
    """texts: of all elements but <style>, in order; tags: how many of each. AssertionError if elements don't nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.texts, self.tags, self.attributes, self.open, self.style = [], {}, [], [], ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> where {self.open} are open"
        self.open.pop()

    def handle_data(self, data):
        if "style" in self.open:
            self.style += data
        elif data.strip():
            self.texts.append(data.strip())


def _colours(block):
    return {name: value for name, value in re.findall(r"--([a-z0-9]+):(#[0-9a-f]+)", block)}


def schemes(style):
    """name -> (colours by name, name of the text's colour by name of what lies under it), light and dark."""
    dark = re.search(r"@media \(prefers-color-scheme:dark\)\{:root\{(.*?)\}\}", style, re.DOTALL)[1]
    light = style.split("@media", 1)[0]
    rules = {"light": re.sub(r"@media.*?\}\}", "", style, flags=re.DOTALL)}
    rules["dark"] = rules["light"] + "".join(re.findall(r"@media \(prefers-color-scheme:dark\)\{(?!:root)(.*?\})\}", style,
                                                        re.DOTALL))
    found = {}
    for scheme, colours in (("light", _colours(light)), ("dark", _colours(light) | _colours(dark))):
        text_on = {step: "ink" for step in colours if re.fullmatch("[qd][0-6]", step)}
        for selectors, colour in re.findall(r"((?:svg text\.on-[qd]\d,?)+)\{fill:var\(--(\w+)\)\}", rules[scheme]):
            text_on |= {step: colour for step in re.findall(r"on-([qd]\d)", selectors)}
        found[scheme] = (colours, text_on)
    return found


def contrast(one, other):
    """Of two colours, #rgb or #rrggbb, by WCAG 2.1: 1 to 21."""

    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        channels = [int(digits[i:i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
