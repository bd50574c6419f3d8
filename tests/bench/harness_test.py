"""The harness itself: that it counts right, on servers and outputs that are made up here."""

import json
import math
import pathlib
import socketserver
import sys
import tempfile
import threading
import types
import unittest
import xml.etree.ElementTree

from harness import engines, limits, load, plot, report, results, rows
from harness.process import ServerProcess

# As limits.c printed it on some machine, cut short.
LIMITS_OUTPUT = """\
bf16 dpbf16ps zmm                  T=1  median    470.0  min    469.0  max    471.0 GFLOP/s
int8 vpdpbusd zmm                  T=1  median    950.0  min    949.0  max    951.0 GOP/s
read 4GiB anon 4K                  T=1  median     30.0  min     29.0  max     31.0 GB/s
bf16 dpbf16ps zmm                  T=2  median    940.0  min    900.0  max    950.0 GFLOP/s
int8 vpdpbusd zmm                  T=2  median   1880.0  min   1800.0  max   1890.0 GOP/s
read 4GiB anon 4K                  T=2  median     41.0  min     40.0  max     60.0 GB/s
read 4GiB anon THP 4 streams       T=2  median     45.0  min     44.0  max     46.0 GB/s
triad 3x1.33GiB THP                T=2  median     90.0  min     80.0  max     91.0 GB/s (no RFO counted)
"""


def row(name):
    return rows.chosen([name])[0]


class LimitsTest(unittest.TestCase):

    def setUp(self):
        self.limits = dict(limits.parse(LIMITS_OUTPUT)[2], threads=2)

    def test_the_best_median_of_reading_counts_and_no_triad(self):
        self.assertEqual(self.limits, {"bandwidth": 45e9, "bf16": 940e9, "i8": 1880e9, "threads": 2})

    def test_limits_are_those_of_a_calculation_by_hand(self):
        # dense BF16: 16 layers of 2 * 1024^2 + 2 * 1024 * 512 + 3 * 1024 * 2816 weights, and a head of 32000 * 1024.
        weights = 16 * (2 * 1024 ** 2 + 2 * 1024 * 512 + 3 * 1024 * 2816)
        kv = 32 * 2 * 512 * 2 * 16
        self.assertAlmostEqual(limits.limit(row("decode-dense-bf16"), self.limits),
                               45e9 / (2 * (weights + 32000 * 1024) + kv), places=6)
        # A prompt of 512: fifteen layers for each token; of the last, two matrices of 1024 * 512 for each, all else once,
        # and one token that looks at 512 others.
        once = 2 * 1024 ** 2 + 3 * 1024 * 2816
        weights = 15 * (once + 2 * 1024 * 512) + 2 * 1024 * 512 + once / 512
        attention = 15 * 2 * 512 * 1024 + 4 * 1024
        self.assertAlmostEqual(limits.limit(row("prefill-dense-bf16"), self.limits), 940e9 / (2 * weights + attention),
                               places=6)
        self.assertAlmostEqual(limits.limit(row("prefill-dense-q8_0"), self.limits),
                               1 / (2 * weights / (0.8 * 1880e9) + attention / 940e9), places=6)

    def test_streams_share_the_experts_that_they_visit(self):
        # 16 streams visit 16 * (1 - (15/16)^16) = 10.3 of 16 experts: the table of the issue says 426, and 954 and 404
        # follow for four experts, and for four times four of which each is visited by four streams.
        self.assertEqual(round(limits.limit(row("batch16-switch-q8_0"), self.limits)), 426)
        self.assertEqual(round(limits.limit(row("batch32-wide-q4_0"), self.limits)), 321)
        self.assertEqual(round(limits.limit(row("batch16-rre-q8_0"), self.limits)), 954)
        self.assertLess(limits.limit(row("batch16-rre-mixed-q8_0"), self.limits),
                        limits.limit(row("batch16-switch-q8_0"), self.limits))

    def test_nothing_is_known_of_a_machine_whose_limits_were_not_printed(self):
        self.assertEqual(limits.parse("Illegal instruction\n"), {})


class AtLeastTest(unittest.TestCase):

    def measure(self, readings, patience=1000):
        """What comes of measurements 1, 2, ..., each read before and after, and how long was slept."""
        now, figures = [0.0], iter(range(1, 100))
        at_least = limits.AtLeast(45e9, iter(readings).__next__, clock=lambda: now[0],
                                  sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
        at_least.PATIENCE_SECONDS, at_least.PAUSE_SECONDS = patience, 5
        return at_least.measure(lambda: {"tokens_per_second": next(figures)}), now[0]

    def test_a_measurement_counts_at_once_where_memory_is_fast_before_and_after(self):
        self.assertEqual(self.measure([45e9, 46e9]), ({"tokens_per_second": 1, "bandwidths_beside": [45e9, 46e9]}, 0))

    def test_it_waits_while_memory_is_slow_and_measures_nothing(self):
        self.assertEqual(self.measure([44e9, 30e9, 50e9, 51e9]),
                         ({"tokens_per_second": 1, "bandwidths_beside": [50e9, 51e9]}, 10))

    def test_what_was_measured_while_memory_became_slow_is_measured_again(self):
        self.assertEqual(self.measure([50e9, 44e9, 52e9, 53e9]),
                         ({"tokens_per_second": 2, "bandwidths_beside": [52e9, 53e9]}, 0))

    def test_patience_ends(self):
        with self.assertRaisesRegex(TimeoutError, "not read at 45 GB/s before and after a measurement within 1 minutes"):
            self.measure([30e9] * 100, patience=60)


class Answer:
    """A server on loopback that answers every request with the next of `answers`, a list of parts, and closes."""

    def __init__(self, *answers):
        self.answers, self.bodies = list(answers), []

    def __enter__(self):
        answer = self

        class Handler(socketserver.StreamRequestHandler):

            def handle(self):
                length = 0
                while (line := self.rfile.readline()).strip():
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                answer.bodies.append(json.loads(self.rfile.read(length)))
                for part in answer.answers.pop(0):
                    self.wfile.write(part)
                    self.wfile.flush()

        self.server = socketserver.TCPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def scion_event(ids, finish=None):
    return b"data: " + json.dumps({"choices": [{"token_ids": ids, "finish_reason": finish}]}).encode() + b"\n\n"


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


def small_load(requests=1, output_tokens=3):
    return load.Load(vocabulary=1000, clients=1, requests=requests, prompt_tokens=4, output_tokens=output_tokens)


class LoadTest(unittest.TestCase):

    def test_ttft_is_to_the_first_token_and_tokens_of_one_event_have_come_at_once(self):
        tally = load.Tally()
        tally.add(10, [(11, 0), (13, 1), (16, 2), (17, 0)])
        self.assertEqual((tally.ttft, tally.gaps, tally.output_tokens), ([3], [3, 0], 3))

    def test_prompts_are_random_ids_after_bos(self):
        stream = [HEAD, scion_event([5]), scion_event([6, 7]), scion_event([], "length"), b"data: [DONE]\n\n"]
        with Answer(stream) as server:
            self.assertEqual(load.run(load.ScionApi, server.port, small_load())["failed"], 0)
        prompt = server.bodies[0]["prompt"]
        self.assertEqual((len(prompt), prompt[0]), (4, 1))
        self.assertTrue(all(259 <= id_ < 1000 for id_ in prompt[1:]))

    def test_events_may_be_cut_anywhere_into_chunks(self):
        whole = scion_event([5, 6]) + scion_event([7], "length")
        parts = [chunk(whole[i:i + 11]) for i in range(0, len(whole), 11)]
        with Answer([CHUNKED, b"".join(parts), chunk(b"")]) as server:
            self.assertEqual(load.run(load.ScionApi, server.port, small_load())["failed"], 0)

    def test_a_request_that_fails_anywhere_is_infinitely_late(self):
        whole = [HEAD, scion_event([5, 6, 7], "length")]
        for name, broken in {"status": [b"HTTP/1.1 429 Too Many Requests\r\n\r\n", whole[1]],
                             "cut off": [HEAD, scion_event([5, 6, 7])],
                             "too short": [HEAD, scion_event([5, 6], "stop")],
                             "no answer": [],
                             "no JSON": [HEAD, b"data: {\n\n"],
                             "error event": [HEAD, scion_event([5]), b'data: {"error": {}}\n\n']}.items():
            with self.subTest(name), Answer(whole, broken) as server:
                figures = load.run(load.ScionApi, server.port, small_load(requests=2))
                self.assertEqual((figures["failed"], figures["ttft_p99"]), (1, math.inf))
        with Answer(whole, whole) as server:
            figures = load.run(load.ScionApi, server.port, small_load(requests=2))
            self.assertEqual(figures["failed"], 0)
            self.assertLess(figures["ttft_p99"], 10)

    def test_a_server_that_is_not_there_fails_every_request(self):
        with Answer() as server:
            port = server.port
        self.assertEqual(load.run(load.ScionApi, port, small_load(requests=3))["failed"], 3)

    def test_llama_servers_are_counted_with_and_without_ids(self):
        def event(**members):
            return b"data: " + json.dumps(members).encode() + b"\n\n"
        stream = [HEAD, event(content="a", stop=False, tokens=[9]), event(content="b", stop=False),
                  event(content="c", stop=False), event(content="", stop=True, tokens=[])]
        with Answer(stream) as server:
            self.assertEqual(load.run(load.LlamaApi, server.port, small_load())["failed"], 0)

    def test_every_server_gets_the_same_prompts(self):
        self.assertEqual(small_load(requests=8).prompts(), small_load(requests=8).prompts())
        self.assertEqual(len({tuple(p) for p in small_load(requests=8).prompts()}), 8)


LOADING_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    refusals = 2
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(503 if Handler.refusals else int(sys.argv[2]))
        self.send_header("Content-Length", "0")
        self.end_headers()
        Handler.refusals = max(0, Handler.refusals - 1)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class ProcessTest(unittest.TestCase):

    def test_a_server_is_asked_until_it_has_loaded(self):
        with ServerProcess(lambda port: [sys.executable, "-c", LOADING_SERVER, port, 200]) as server:
            seconds = server.first_answer("/", {})
            self.assertTrue(0 < seconds < 60)
            self.assertGreater(server.peak_memory_bytes(), 1 << 20)

    def test_a_server_that_ends_or_refuses_is_an_error_that_says_so(self):
        with ServerProcess(lambda port: [sys.executable, "-c", "import sys; sys.exit('no such file')"]) as server:
            with self.assertRaisesRegex(RuntimeError, "ended with 1: no such file"):
                server.first_answer("/", {})
        with ServerProcess(lambda port: [sys.executable, "-c", LOADING_SERVER, port, 400]) as server:
            with self.assertRaisesRegex(RuntimeError, "answers 400"):
                server.first_answer("/", {})


class ReportTest(unittest.TestCase):

    def rounds(self, ours, peers):
        return [{"seconds": 1, "scion": ours[i], **{name: values[i] for name, values in peers.items()}}
                for i in range(len(ours))]

    def test_a_ratio_above_one_means_better_whatever_the_figure(self):
        self.assertEqual(report.ratio(rows.Figure("tokens/s"), 30, 10), 3)
        self.assertEqual(report.ratio(rows.Figure("s", more_is_better=False), 10, 30), 3)
        self.assertEqual(report.ratio(rows.Figure("s", more_is_better=False), 1, math.inf), math.inf)
        self.assertEqual(report.ratio(rows.Figure("s", more_is_better=False), math.inf, 1), 0)

    def test_targets_are_measured_against_the_better_peer(self):
        speeds = lambda *values: [{"tokens_per_second": v} for v in values]  # noqa: E731
        rounds = self.rounds(speeds(280, 290, 310), {"a": speeds(100, 100, 100), "b": speeds(150, 150, 150)})
        (asked, got, reached), = report.verdicts(row("batch16-switch-q8_0"), rounds, ["a", "b"], [])
        self.assertEqual((asked, got, reached), ("1.8 x b", "1.93", True))
        rounds = self.rounds(speeds(260, 260, 310), {"a": speeds(100, 100, 100), "b": speeds(150, 150, 150)})
        self.assertFalse(report.verdicts(row("batch16-switch-q8_0"), rounds, ["a", "b"], [])[0][2])

    def test_bounds_are_scions_own_figures(self):
        start = lambda seconds: {"first_token": seconds, "memory_ratio": 1.2}  # noqa: E731
        found = report.verdicts(row("start-switch-q4_0"), self.rounds([start(0.1)], {}), [], [])
        self.assertEqual([reached for _, _, reached in found], [True, False])

    def test_the_share_of_the_limit_follows_the_runs_own_limits(self):
        measured = [dict(limits.parse(LIMITS_OUTPUT)[2], threads=2)]
        rounds = self.rounds([{"tokens_per_second": 477}], {})
        slow = self.rounds([{"tokens_per_second": 477, "bandwidth": 30e9}], {})
        self.assertEqual([got for _, got, _ in report.verdicts(row("batch16-rre-q8_0"), slow, [], measured)], ["50%"])
        limit, share = report.limit_shares(row("batch16-rre-q8_0"), rounds, measured)
        self.assertAlmostEqual(share, 477 / limit)
        self.assertIn("NOT REACHED: >= 65% of the limit: 50%",
                      "\n".join(report.lines(row("batch16-rre-q8_0"), rounds, [], measured)))

    def test_what_is_asked_is_told_as_a_share_of_the_limit_in_its_round(self):
        measured = [dict(limits.parse(LIMITS_OUTPUT)[2], threads=2)]
        at_45 = limits.limit(row("batch16-switch-q8_0"), measured[0])
        ours = [{"tokens_per_second": 300}, {"tokens_per_second": 300, "bandwidth": 90e9},
                {"tokens_per_second": 300, "bandwidth": 180e9}]
        rounds = self.rounds(ours, {"a": [{"tokens_per_second": 150}] * 3})
        (asked, got, reached), = report.verdicts(row("batch16-switch-q8_0"), rounds, ["a"], measured)
        self.assertEqual((asked, got, reached), (f"1.8 x a, {270 / (2 * at_45):.0%} of the limit", "2.00", True))
        prompts = self.rounds([{"tokens_per_second": 900, "peak": 470e9}], {"a": [{"tokens_per_second": 800}]})
        at_940 = limits.limit(row("prefill-dense-bf16"), measured[0])
        limit, share = report.limit_shares(row("prefill-dense-bf16"), prompts, measured)
        self.assertAlmostEqual(limit, at_940 / 2)
        self.assertAlmostEqual(share, 1800 / at_940)

    def test_a_table_has_a_line_for_every_figure(self):
        server = lambda speed, late: {"tokens_per_second": speed, "ttft_p50": late, "itl_p99": 0.05}  # noqa: E731
        rounds = self.rounds([server(300, 0.5)], {"a": [server(100, 2)], "b": [server(150, 4)]})
        alone = self.rounds([{"tokens_per_second": 500}], {})
        lines = list(report.table([(row("server16-switch-q8_0"), rounds), (row("batch16-rre-q8_0"), alone)],
                                  ["a", "b"], []))
        self.assertEqual(len(lines), 2 + 3 + 1)
        self.assertEqual({line.count("|") for line in lines}, {9})
        self.assertIn("| 300 | 100 | 150 | 2.00 (2.00 to 2.00) |", lines[2])
        self.assertIn("| 0.5 | 2 | 4 | 4.00 (4.00 to 4.00) |", lines[3])  # the better one is late by 2 s


class ResultsTest(unittest.TestCase):

    def test_a_run_goes_on_where_it_was_cut_off(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "run.json"
            first = results.Results(path, {"threads": 2})
            first.add_round("r", {"seconds": 1, "scion": {"ttft_p50": math.inf}, "a": {}})
            first.add_round("r", {"seconds": 1, "scion": {}})
            again = results.Results(path, {"threads": 2})
            self.assertEqual(len(again.rounds("r", ["scion"])), 2)
            self.assertEqual(again.rounds("r", ["scion", "a"])[0]["scion"]["ttft_p50"], math.inf)
            self.assertEqual(len(again.rounds("r", ["scion", "a"])), 1)
            with self.assertRaises(ValueError):
                results.Results(path, {"threads": 1})

    def test_a_picture_has_a_line_for_every_engine(self):
        kept = results.Results(None, {})
        for clients, speed in ((1, 50), (16, 150), (32, 160)):
            kept.add_round(f"server{clients}-switch-q8_0",
                           {"seconds": 1, "scion": {"tokens_per_second": 2 * speed}, "a": {"tokens_per_second": speed}})
        lines = plot.series(rows.ROWS, kept, ["scion", "a"])
        self.assertEqual(lines["scion"], [(1, 100), (16, 300), (32, 320)])
        picture = xml.etree.ElementTree.fromstring(plot.svg(lines, "t"))
        strokes = [p for p in picture.iter("{http://www.w3.org/2000/svg}path") if p.get("stroke-width") == "2"]
        self.assertEqual(len(strokes), 2)
        with self.assertRaises(ValueError):
            plot.svg({}, "t")


class EnginesTest(unittest.TestCase):

    def test_the_median_of_llama_benchs_repetitions_counts(self):
        text = 'warning\n[\n {"avg_ts": 90.0, "samples_ns": [1, 2, 3], "samples_ts": [80.0, 100.0, 97.0]}\n]\n'
        self.assertEqual(engines.parse_llama_bench(text), 97.0)
        with self.assertRaises(ValueError):
            engines.parse_llama_bench('[\n{"samples_ts": [1]}, {"samples_ts": [1]}\n]')

    def test_the_batched_table_is_read_by_its_column_of_decode(self):
        text = ("|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |\n"
                "|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|\n"
                "|   128 |     64 |   16 |   3072 |    4.000 |   512.00 |    8.000 |   128.00 |   12.000 |   256.00 |\n")
        self.assertEqual(engines.parse_batched_bench(text, 16), 128.0)
        with self.assertRaises(ValueError):
            engines.parse_batched_bench(text, 32)

    def test_a_peer_without_its_programs_is_refused(self):
        with tempfile.TemporaryDirectory() as directory:
            with self.assertRaisesRegex(ValueError, "llama-server"):
                engines.peer(f"llama.cpp={directory}", 2)
            (pathlib.Path(directory) / "build/bin").mkdir(parents=True)
            for program in engines.PROGRAMS:
                (pathlib.Path(directory) / "build/bin" / program).touch()
            self.assertIs(type(engines.peer(f"llama.cpp={directory}", 2)), engines.LlamaCpp)
            self.assertIs(type(engines.peer(f"ik={directory}", 2)), engines.IkLlamaCpp)

    def test_llama_touches_the_whole_context_and_scion_what_it_writes(self):
        model = types.SimpleNamespace(kv_bytes_per_token=32 << 10)
        self.assertEqual(engines.Scion("scion", ".", 2).kv_bytes_touched(model, 256), 0)
        self.assertEqual(engines.LlamaCpp("llama.cpp", ".", 2).kv_bytes_touched(model, 256), 8 << 20)

    def test_a_row_that_is_not_there_is_named(self):
        with self.assertRaisesRegex(KeyError, "decode-nothing"):
            rows.chosen(["decode-*", "decode-nothing"])


if __name__ == "__main__":
    unittest.main()
