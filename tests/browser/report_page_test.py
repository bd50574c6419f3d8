#!/usr/bin/env python3
"""The page of `moe-extract report` in Chromium: nothing sticks out, nothing is asked for, light and dark differ.

usage: report_page_test.py --moe-extract PROGRAM [--screenshots DIR]

The demo's page is laid out in frames as wide as a telephone and as a desk, and asked for the boxes of what it shows. With
--screenshots it is kept as PNG too, for people to look at.
"""

import argparse
import html
import http.server
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "deploy" / "demo"
WIDTHS = (360, 1000)
BROWSER = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
DARK = "--blink-settings=preferredColorScheme=0"
# Runs beside the page, which itself runs no script and is in a frame: asks it for boxes and colours.
PROBE = """
addEventListener("load", () => {
  const answers = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement, found = {};
    found.width = frame.clientWidth;
    found.page = root.scrollWidth;
    found.scheme = frame.contentWindow.getComputedStyle(page.body).backgroundColor;
    found.texts = [...page.querySelectorAll("svg text")].map(text => {
      const box = text.getBBox(), svg = text.closest("svg").viewBox.baseVal;
      return {text: text.textContent, outside: box.x < -0.5 || box.y < -0.5 || box.x + box.width > svg.width + 0.5 ||
              box.y + box.height > svg.height + 0.5};
    });
    found.scrolled = [...page.querySelectorAll("svg[role]")]
        .filter(plot => plot.getBoundingClientRect().right > frame.clientWidth).length;
    const cells = [...page.querySelectorAll("svg[role] rect")];
    found.cells = cells.length;
    found.spilled = [...page.querySelectorAll('svg text[class^="on-"]')].filter(text => {
      const box = text.getBBox(), cell = text.previousElementSibling.getBBox();
      return box.x < cell.x || box.x + box.width > cell.x + cell.width;
    }).map(text => text.textContent);
    found.unpainted = cells.filter(cell => frame.contentWindow.getComputedStyle(cell).fill === "rgb(0, 0, 0)").length;
    return found;
  });
  document.body.textContent = JSON.stringify(answers);
});
"""


def chromium(*arguments):
    with tempfile.TemporaryDirectory() as profile:
        result = subprocess.run([*BROWSER, f"--user-data-dir={profile}", *map(str, arguments)], capture_output=True,
                                text=True, timeout=120, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"chromium: {result.returncode}: {result.stderr}")
    return result.stdout


def frames(page, widths, height, script=""):
    """A document that shows the page once for each width."""
    inner = "".join(f'<iframe width="{width}" height="{height}" style="border:0" srcdoc="{html.escape(page)}"></iframe>'
                    for width in widths)
    return f'<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">{inner}<script>{script}</script></body>'


def asked_for(page):
    """The paths that the browser asks a server for that gives it the page, icons left out."""
    paths = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            if self.path == "/":
                self.wfile.write(page.encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chromium("--dump-dom", f"http://127.0.0.1:{server.server_port}/")
        server.shutdown()
    return [path for path in paths if path != "/favicon.ico"]


class ReportPageTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        subprocess.run([OPTIONS.moe_extract, "report", DEMO, "--matrix", DEMO / "eval" / "matrix.json", "-o",
                        cls.work / "page.html"], check=True, capture_output=True)
        cls.page = (cls.work / "page.html").read_text()

    def probe(self, page, *arguments):
        """What the probe says of the page at each of WIDTHS."""
        (self.work / "probe.html").write_text(frames(page, WIDTHS, 800, PROBE))
        document = chromium("--dump-dom", "--virtual-time-budget=5000", *arguments, f"file://{self.work}/probe.html")
        body = document.split("<body", 1)[1].split(">", 1)[1].split("</body>")[0]
        return json.loads(html.unescape(body))

    def test_it_fits_a_telephone_and_a_desk(self):
        for found in self.probe(self.page):
            self.assertLessEqual(found["page"], found["width"])
            self.assertIn(found["width"], WIDTHS)
            self.assertGreater(len(found["texts"]), 16 + 4 * 12)
            self.assertEqual([text["text"] for text in found["texts"] if text["outside"]], [])
            self.assertEqual(found["spilled"], [])
            self.assertEqual(found["scrolled"], 0)  # the demo's plots, whole

    def test_it_asks_for_nothing(self):
        self.assertEqual(asked_for(self.page), ["/"])
        fetching = self.page.replace("<footer>", '<img src="/picture.png"><footer>')
        self.assertEqual(asked_for(fetching), ["/"])  # which the page forbids
        forbidding = '<meta http-equiv="Content-Security-Policy"'
        self.assertIn(forbidding, fetching)
        self.assertEqual(asked_for(fetching.replace(forbidding, "<meta name=")), ["/", "/picture.png"])

    def test_light_and_dark_are_painted(self):
        light, dark = self.probe(self.page)[0], self.probe(self.page, DARK)[0]
        self.assertEqual(light["scheme"], "rgb(255, 255, 255)")
        self.assertEqual(dark["scheme"], "rgb(18, 22, 27)")
        for found in (light, dark):
            self.assertGreater(found["cells"], 16 + 4 * 12)
            self.assertEqual(found["unpainted"], 0)

    def test_the_probe_sees_what_is_wrong(self):
        too_wide = self.page.replace("<footer>", '<div style="width:500px">x</div><footer>')
        self.assertEqual([found["page"] > found["width"] for found in self.probe(too_wide)], [True, False])
        spilled = self.page.replace(">11.41</text>", ">11.41 and far beyond the end of its cell</text>")
        self.assertEqual([found["spilled"] for found in self.probe(spilled)],
                         2 * [["11.41 and far beyond the end of its cell"]])

    def test_screenshots(self):
        folder = OPTIONS.screenshots or self.work
        for name, width, arguments in (("light", 1000, []), ("dark", 1000, [DARK]), ("telephone", 360, [])):
            (self.work / "shot.html").write_text(frames(self.page, [width], 3200))
            picture = folder / f"{name}.png"
            chromium(f"--screenshot={picture}", f"--window-size={max(width, 500)},3200", *arguments,
                     f"file://{self.work}/shot.html")
            self.assertEqual(picture.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--moe-extract", required=True)
    parser.add_argument("--screenshots", type=pathlib.Path)
    OPTIONS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
