"""The page that shows a model: its figures are those of the files and of other programs, and are found in the page."""

import json
import re
import struct
import subprocess

import numpy
import pytest

from moe_serve import bin_directory
from page import FETCHING, Page, contrast, schemes


def extract(*arguments, code=0):
    result = subprocess.run([str(bin_directory() / "moe-extract"), *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    return result


@pytest.fixture(scope="module")
def fold():
    """As densify --json says."""
    return {"domain": "cpp", "method": "lsq", "width": 2, "route_channels": True, "bytes": 9_876_543,
            "model_bytes": 13_286_800, "held_out": {"scored_tokens": 23324, "source_perplexity": 11.4114,
                                                    "perplexity": 13.0192, "perplexity_ratio": 1.1409,
                                                    "kl_divergence": 0.1371, "top1_agreement": 0.8642}}


@pytest.fixture(scope="module")
def made(demo, fold, tmp_path_factory):
    """The demo's page with everything in it: its text, and the figures as JSON."""
    work = tmp_path_factory.mktemp("report")
    (work / "folds.json").write_text(json.dumps([fold]))
    result = extract("report", demo, "--text", demo / "eval", "--folds", work / "folds.json", "-o", work / "demo.html",
                     "--json")
    return (work / "demo.html").read_text(), json.loads(result.stdout)


@pytest.fixture(scope="module")
def page(made):
    return Page(made[0])


def rows_of(figures):
    return {row["text"]: row for row in figures["matrix"]["rows"]}


def test_the_matrix_is_moe_clients(made, demo, server):
    result = subprocess.run([str(bin_directory() / "moe-client"), "score", "--matrix", str(demo / "eval"), "--address",
                             server.grpc, "--json"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = json.loads(result.stdout)
    rows = rows_of(made[1])
    assert list(rows) == [row["text"] for row in expected["rows"]]
    for row in expected["rows"]:
        assert rows[row["text"]]["scored_tokens"] == row["scored_tokens"]
        # The same logits; moe-client adds up log-probabilities that were rounded to fp32.
        assert rows[row["text"]]["perplexity"] == pytest.approx(row["perplexity"], rel=1e-5)


def test_the_matrix_is_pytorchs_within_a_percent(made, demo):
    """The committed one is of fp32, the engine's of bf16."""
    rows = rows_of(made[1])
    for text, row in json.loads((demo / "eval/matrix.json").read_text()).items():
        assert rows[text]["scored_tokens"] == row["scored_tokens"]
        assert rows[text]["perplexity"] == pytest.approx(row["perplexity"], rel=0.01)


def test_every_figure_is_in_the_page(made, page, demo, fold):
    _, figures = made
    texts = set(page.texts)
    everything = " ".join(page.texts)
    for row in figures["matrix"]["rows"]:
        assert f"{row['scored_tokens']:,}" in texts
        for value in row["perplexity"].values():
            assert (f"{value:.2f}" if value < 100 else f"{value:.1f}") in texts
    for path in ["trunk.safetensors", *(f"domains/{name}.safetensors" for name in ("zh", "en", "cpp", "python"))]:
        assert path in texts and f"{(demo / path).stat().st_size:,}" in texts
    for balance in figures["balance"]:
        assert balance["by"] == "text"
        for layer in balance["layers"]:
            assert sum(layer["shares"]) == pytest.approx(1)
            assert texts >= {f"{100 * share:.1f}%" for share in layer["shares"]}
    lock = json.loads((demo / "scion.lock.json").read_text())
    assert lock["lock_sha256"] in texts
    for entry in lock["lineage"]:
        assert {entry["verb"], entry["time"], entry["source"]} <= texts
    held_out = fold["held_out"]
    assert {"lsq, route channels", "1.141", f"{held_out['perplexity']:.2f}", "0.1371", "86.4%", "9,876,543", "74.3%"} <= texts
    assert "measured" in texts and "windows of 256 tokens" in everything


def test_balance_by_token_types_is_the_tables(demo, tmp_path):
    figures = json.loads(extract("report", demo, "-o", tmp_path / "page.html", "--json").stdout)
    for balance in figures["balance"]:
        file = (demo / f"domains/{balance['domain']}.safetensors").read_bytes()
        size = struct.unpack("<Q", file[:8])[0]
        header = json.loads(file[8:8 + size])
        for layer in balance["layers"]:
            begin, end = header[f"model.layers.{layer['layer']}.mlp.domains.{balance['domain']}.route"]["data_offsets"]
            route = numpy.frombuffer(file[8 + size + begin:8 + size + end], numpy.int32)
            assert layer["shares"] == pytest.approx((numpy.bincount(route, minlength=4) / len(route)).tolist())
    assert "Not measured: no texts were given (--text)." in Page((tmp_path / "page.html").read_text()).texts


def test_the_page_stands_alone(made, page):
    assert not FETCHING & {name for name, _ in page.attributes}
    assert not re.search(r"https?:|//|url\(|@import", made[0])
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags)
    assert page.tags["svg"] >= 1 + 4  # the matrix, and a balance for each domain
    assert page.tags["title"] > page.tags["svg"] // 4 and page.tags["desc"] == 5
    assert ("content", "width=device-width, initial-scale=1") in page.attributes


def test_text_is_legible_on_every_colour(page):
    for scheme, (colours, text_on) in schemes(page.style).items():
        assert len(text_on) == 14, scheme
        for step, text in text_on.items():
            assert contrast(colours[step], colours[text]) >= 4.5, (scheme, step, text)
        for text in ("ink", "quiet"):
            assert contrast(colours["page"], colours[text]) >= 4.5, (scheme, text)
        for steps in ("q0123456", "d0123456"):
            neighbours = [(steps[0] + a, steps[0] + b) for a, b in zip(steps[1:], steps[2:])]
            assert all(contrast(colours[a], colours[b]) > 1.05 for a, b in neighbours), scheme
    light, dark = (schemes(page.style)[name][0] for name in ("light", "dark"))
    assert contrast(light["page"], "#fff") < 1.1 and contrast(dark["page"], "#000") < 1.3


def test_the_contrast_that_is_measured_is_wcags():
    assert contrast("#fff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)  # the grey that famously just fails


def test_figures_of_a_file_say_that_they_were_read(demo, tmp_path):
    extract("report", demo, "--matrix", demo / "eval/matrix.json", "-o", tmp_path / "page.html")
    texts = Page((tmp_path / "page.html").read_text()).texts
    assert "read, not measured" in texts and "measured" not in texts
    assert {"79.52", "592.1", "11.41"} <= set(texts)


def test_what_is_there_stays(demo, tmp_path):
    (tmp_path / "page.html").write_text("mine")
    assert "page.html" in extract("report", demo, "-o", tmp_path / "page.html", code=1).stderr
    assert (tmp_path / "page.html").read_text() == "mine"
    assert extract("report", demo, "--text", tmp_path, "-o", tmp_path / "other.html", code=1).stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html"]
