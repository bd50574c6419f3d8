#!/usr/bin/env python3
"""What folding the demo's domains costs and loses: perplexity against the slice's, FLOPs, bytes, CPU seconds.

usage: fold_frontier.py --texts DIR --out run.json [--svg FILE.svg] [--folds DIR] [--domain cpp ...]
DIR of the texts: by fold_texts.py

Every fold is written by `moe-extract densify` and measured by it, with the engine, on deploy/demo/eval/DOMAIN.jsonl:
texts from other packages than DIR/DOMAIN.txt, to which lsq is fitted, and without a run of 50 tokens in common (checked
here again). Prints a table in Markdown.
"""

import argparse
import json
import math
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "deploy" / "demo"
DOMAINS = ("zh", "en", "cpp", "python")
# name, arguments; and whether route channels are the default there.
SERIES = {
    "average": ["--method", "average", "--route-channels", "off"],
    "weighted": ["--method", "weighted", "--route-channels", "off"],
    "lsq": ["--method", "lsq"],
}
WIDTHS = (1, 2, 4)
COLOURS = {"average": "#8c959f", "weighted": "#d95f02", "lsq": "#1b9e77"}
STYLE = """<style>
  text { fill: #1f2328 } .back { fill: #fff } .grid { stroke: #d8dee4 }
  .slice { stroke: #8c959f; stroke-dasharray: 4 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .back { fill: #0d1117 } .grid { stroke: #30363d } .slice { stroke: #6e7681 }
  }
</style>"""


def check_texts(folder):
    """That no calibration text shares a run of 50 tokens with the text that it is measured on."""
    from tokenizers import Tokenizer

    import fold_texts
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    for domain in DOMAINS:
        forbidden, _ = fold_texts.eval_runs(tokenizer, domain)
        text = (folder / f"{domain}.txt").read_text(encoding="utf-8")
        if shared := fold_texts.shared_runs(tokenizer, text, forbidden):
            raise SystemExit(f"{folder}/{domain}.txt shares {shared} runs of {fold_texts.RUN_TOKENS} tokens with the "
                             f"text that {domain} is measured on")


def flops_per_token(config):
    """Two per weight that a token is multiplied with; attention's own products with the context are left out."""
    hidden, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    attention = hidden * config["head_dim"] * 2 * (heads + kv_heads)
    sparse = set(config.get("sparse_layers", []))
    ffn = sum(3 * hidden * config["moe_intermediate_size" if layer in sparse else "intermediate_size"] *
              (config.get("num_experts_per_tok", 1) if layer in sparse else 1)
              for layer in range(config["num_hidden_layers"]))
    return 2 * (config["num_hidden_layers"] * attention + ffn + hidden * config["vocab_size"])


def fold(program, texts, domain, series, width, out):
    arguments = [program, "densify", DEMO, "--domain", domain, "-o", out, "--width", width, "--json",
                 "--eval", DEMO / "eval" / f"{domain}.jsonl", *SERIES[series]]
    if series != "average":
        arguments += ["--calibration", texts / f"{domain}.txt"]
    result = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(result.stderr)
    row = json.loads(result.stdout)
    row["series"] = series
    row["flops_per_token"] = flops_per_token(json.loads((out / "config.json").read_text()))
    return row


def table(rows, slice_flops):
    lines = ["| domain | method | width | perplexity / slice's | KL, nats | top-1 the same | FLOPs / slice's | MB | "
             "CPU seconds |", "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        held_out = row["held_out"]
        lines.append(f"| `{row['domain']}` | {row['series']} | {row['width']} | {held_out['perplexity_ratio']:.3f} | "
                     f"{held_out['kl_divergence']:.3f} | {100 * held_out['top1_agreement']:.1f}% | "
                     f"{row['flops_per_token'] / slice_flops:.2f} | {row['bytes'] / 1e6:.1f} | "
                     f"{row['cpu_seconds']:.0f} |")
    return "\n".join(lines)


def svg(rows, slice_flops):
    """A panel per domain: FLOPs of the slice's across, perplexity of the slice's upwards, both logarithmic."""
    panel, height, margin = 230, 240, 44
    least, most = 0.97, max(2.0, *(row["held_out"]["perplexity_ratio"] for row in rows))
    across = [row["flops_per_token"] / slice_flops for row in rows]
    left, right = 0.95, max(across) * 1.06

    def x_of(value):
        return 8 + (panel - 24) * math.log(value / left) / math.log(right / left)

    def y_of(value):
        return margin + (height - 2 * margin) * (1 - math.log(value / least) / math.log(most / least))

    domains = list(dict.fromkeys(row["domain"] for row in rows))
    width = margin + panel * len(domains)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 22}" font-family="sans-serif" '
           'font-size="11">', STYLE,
           f'<rect class="back" width="{width}" height="{height + 22}"/>']
    ticks = [value for value in (1, 1.15, 1.3, 1.5, 2, 3, 4) if value <= most]
    for index, domain in enumerate(domains):
        out.append(f'<g transform="translate({margin + panel * index},0)">')
        out.append(f'<text x="{panel / 2}" y="18" text-anchor="middle" font-size="13">{domain}</text>')
        for tick in ticks:
            kind = "slice" if tick == 1 else "grid"
            out.append(f'<path d="M0 {y_of(tick):.1f}H{panel - 16}" class="{kind}"/>')
            if index == 0:
                out.append(f'<text x="-6" y="{y_of(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for tick in (1, 1.5, 2):
            out.append(f'<text x="{x_of(tick):.1f}" y="{height - margin + 16}" text-anchor="middle">{tick:g}</text>')
        for series, colour in COLOURS.items():
            points = [(x_of(row["flops_per_token"] / slice_flops), y_of(row["held_out"]["perplexity_ratio"]))
                      for row in rows if row["domain"] == domain and row["series"] == series]
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            out.append(f'<path d="M{path}" fill="none" stroke="{colour}"/>')
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        out.append("</g>")
    out.append(f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">FLOPs per token, of the slice\'s (widths '
               '1, 2, 4); upwards: perplexity, of the slice\'s</text>')
    for index, (series, colour) in enumerate(COLOURS.items()):
        x = margin + 170 * index
        out.append(f'<circle cx="{x}" cy="{height + 8}" r="3.5" fill="{colour}"/>')
        out.append(f'<text x="{x + 8}" y="{height + 12}">{series}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="results; what it holds is not run again")
    parser.add_argument("--svg", type=pathlib.Path)
    parser.add_argument("--folds", type=pathlib.Path, help="an empty folder in which the folds stay")
    parser.add_argument("--domain", action="append", choices=DOMAINS)
    parser.add_argument("--moe-extract", default=str(ROOT / "build/release/bin/moe-extract"))
    arguments = parser.parse_args()
    check_texts(arguments.texts)
    rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    done = {(row["domain"], row["series"], row["width"]) for row in rows}
    for width in WIDTHS:
        for domain in arguments.domain or DOMAINS:
            for series in SERIES:
                if (domain, series, width) in done:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    out = (arguments.folds or pathlib.Path(folder)) / f"{domain}-{series}-{width}"
                    rows.append(fold(arguments.moe_extract, arguments.texts, domain, series, width, out))
                arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    order = {(domain, series, width): index for index, (domain, series, width) in enumerate(
        (domain, series, width) for domain in DOMAINS for series in SERIES for width in WIDTHS)}
    rows.sort(key=lambda row: order[row["domain"], row["series"], row["width"]])
    slice_flops = flops_per_token(json.loads((DEMO / "config.json").read_text()))
    print(table(rows, slice_flops))
    if arguments.svg is not None:
        arguments.svg.write_text(svg(rows, slice_flops))


if __name__ == "__main__":
    main()
