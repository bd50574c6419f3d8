"""What is measured: one row per line of the comparison, by name."""

import dataclasses
import fnmatch


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of a row: its unit for people, and whether more of it is better."""
    label: str
    more_is_better: bool = True


DECODE = {"tokens_per_second": Figure("tokens/s")}
SERVER = {"tokens_per_second": Figure("output tokens/s"),
          "ttft_p50": Figure("s TTFT p50", more_is_better=False),
          "itl_p99": Figure("s ITL p99", more_is_better=False)}
START = {"first_token": Figure("s exec to first token", more_is_better=False),
         "memory_ratio": Figure("x VmHWM without KV over the file", more_is_better=False)}

PROMPT_TOKENS, OUTPUT_TOKENS, REQUESTS = 128, 64, 64


@dataclasses.dataclass(frozen=True)
class Row:
    """kind: decode, prefill, server or start. shape and type name the file; targets are figure -> the least ratio to
    the better peer, bounds are figure -> the value that Scion's own figure must reach (in the figure's unit)."""
    name: str
    kind: str
    shape: str
    type: str
    help: str
    streams: int = 1
    depth: int = 0
    prompt: int = 0
    domains: int = 1
    targets: dict = dataclasses.field(default_factory=dict)
    bounds: dict = dataclasses.field(default_factory=dict)
    least_limit_share: float = 0  # of the limit measured in the same run
    least_bandwidth_share: float = 0  # of the bandwidth measured in the same round

    @property
    def figures(self):
        return {"decode": DECODE, "prefill": DECODE, "server": SERVER, "start": START}[self.kind]

    @property
    def peers_can(self):
        return self.shape != "rre"


def _decode(shape, type_, ratio, share=0.0):
    return Row(f"decode-{shape}-{type_.lower()}", "decode", shape, type_, "one stream, 64 tokens after an empty prompt",
               targets={"tokens_per_second": ratio}, least_bandwidth_share=share)


def _batch(streams, shape, type_, ratio):
    return Row(f"batch{streams}-{shape}-{type_.lower()}", "decode", shape, type_,
               f"{streams} streams decode together, 64 tokens each after a prompt of {PROMPT_TOKENS}", streams=streams,
               depth=PROMPT_TOKENS, targets={"tokens_per_second": ratio})


def _prefill(shape, type_, ratio):
    return Row(f"prefill-{shape}-{type_.lower()}", "prefill", shape, type_, "one prompt of 512 tokens", prompt=512,
               targets={"tokens_per_second": ratio})


def _server(clients):
    wanted = {"targets": {"tokens_per_second": 2.2}, "bounds": {"ttft_p50": 0.6, "itl_p99": 0.1}}
    return Row(f"server{clients}-switch-q8_0", "server", "switch", "Q8_0",
               f"server, {clients} clients that stream, {REQUESTS} requests, prompt {PROMPT_TOKENS}, output "
               f"{OUTPUT_TOKENS}", streams=clients, **(wanted if clients == 16 else {}))


def _start(type_, bounds):
    return Row(f"start-switch-{type_.lower()}", "start", "switch", type_,
               "server: exec to the first token, warm; VmHWM by then without KV, over the file's size", bounds=bounds)


# A target of 1 means "not below": reached when 1 lies within the spread of the ratios.
ROWS = [
    _decode("dense", "Q8_0", 1, 0.9), _decode("switch", "Q8_0", 1.15, 0.9), _decode("wide", "Q8_0", 1, 0.9),
    _decode("dense", "Q4_0", 1.3), _decode("switch", "Q4_0", 1.4), _decode("wide", "Q4_0", 1.15),
    _decode("dense", "BF16", 1, 0.9), _decode("switch", "BF16", 1, 0.9),
    Row("depth2048-switch-q8_0", "decode", "switch", "Q8_0", "one stream, 64 tokens after 2048 computed ones",
        depth=2048, targets={"tokens_per_second": 1.8}),
    _batch(16, "switch", "Q8_0", 1.8), _batch(16, "switch", "Q4_0", 2), _batch(16, "wide", "Q4_0", 1.9),
    _batch(32, "switch", "Q8_0", 2.3), _batch(32, "wide", "Q4_0", 2.3),
    _prefill("dense", "BF16", 1.15), _prefill("dense", "Q8_0", 1.8),
    _prefill("switch", "BF16", 1.35), _prefill("switch", "Q8_0", 2), _prefill("switch", "Q4_0", 1.8),
    _prefill("wide", "Q8_0", 1.6), _prefill("wide", "Q4_0", 1.6),
    _server(1), _server(8), _server(16), _server(32),
    _start("Q8_0", {"first_token": 0.15}), _start("Q4_0", {"first_token": 0.15, "memory_ratio": 1.05}),
    Row("batch16-rre-q8_0", "decode", "rre", "Q8_0",
        "Scion alone: 16 streams of one domain of switch's RRE twin, 64 tokens each after a prompt of 128", streams=16,
        depth=PROMPT_TOKENS, least_limit_share=0.65),
    Row("batch16-rre-mixed-q8_0", "decode", "rre", "Q8_0", "Scion alone: the same, 4 streams of each of 4 domains",
        streams=16, depth=PROMPT_TOKENS, domains=4),
]


def chosen(patterns):
    """The rows that match any of the shell patterns, in the table's order; all without a pattern. KeyError names a
    pattern that matches none."""
    for pattern in patterns:
        if not fnmatch.filter([row.name for row in ROWS], pattern):
            raise KeyError(pattern)
    return [row for row in ROWS if not patterns or any(fnmatch.fnmatch(row.name, p) for p in patterns)]
