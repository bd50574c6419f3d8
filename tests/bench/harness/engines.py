"""Who is measured: each engine measures a row on a file and returns its figures."""

import json
import pathlib
import statistics
import subprocess
import tempfile

from harness import load
from harness.process import ServerProcess
from harness.rows import OUTPUT_TOKENS, PROMPT_TOKENS, REQUESTS

DECODE_TOKENS = 64
REPETITIONS = 3  # of a prompt, or of one stream, in a round: their median counts
FIRST_TOKEN_PROMPT = [1] + list(range(1000, 1007))
START_CONTEXT = 256  # small, so that KV weighs nothing


class Engine:
    """threads: of computation. measure() dispatches on the row's kind."""

    def __init__(self, name, directory, threads):
        self.name, self.directory, self.threads = name, pathlib.Path(directory).resolve(), threads

    def measure(self, row, model):
        """The row's figures, by name, for models.Model `model`."""
        return getattr(self, row.kind)(row, model)

    def server(self, row, model):
        api, slots = self.api, max(row.streams, 1)
        context = PROMPT_TOKENS + OUTPUT_TOKENS + 64
        with ServerProcess(lambda port: self.serve_command(model.path, port, slots, slots * context)) as server:
            work = load.Load(vocabulary=model.vocabulary, clients=row.streams, requests=REQUESTS,
                             prompt_tokens=PROMPT_TOKENS, output_tokens=OUTPUT_TOKENS)
            server.first_answer(api.path, dict(api.body(work, work.prompts()[0]), stream=False))
            return load.run(api, server.port, work)

    def start(self, row, model):
        api = self.api
        body = api.body(load.Load(vocabulary=model.vocabulary, clients=1, output_tokens=1), FIRST_TOKEN_PROMPT)
        seconds, memory = None, None
        for _ in range(2):  # the first makes it warm: page cache, caches of the engine's own
            with ServerProcess(lambda port: self.serve_command(model.path, port, 1, START_CONTEXT)) as server:
                seconds = server.first_answer(api.path, dict(body, stream=False))
                memory = server.peak_memory_bytes()
        file_bytes = model.path.stat().st_size
        kv_bytes = self.kv_bytes_touched(model, START_CONTEXT)
        return {"first_token": seconds, "memory_ratio": (memory - kv_bytes) / file_bytes,
                "memory_bytes": memory, "file_bytes": file_bytes}

    def kv_bytes_touched(self, model, context):
        """KV cache that is resident after the first token."""
        return model.kv_bytes_per_token * context

    def _run(self, *command):
        with tempfile.TemporaryDirectory() as here:  # some leave a log file where they stand
            ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=here)
        if ran.returncode != 0:
            raise RuntimeError(f"{command[0]} ended with {ran.returncode}: {(ran.stdout + ran.stderr)[-2000:]}")
        return ran


class Scion(Engine):
    api = load.ScionApi

    def decode(self, row, model):
        return self._steps(row, model, REPETITIONS if row.streams == 1 else 1, "--prefill", 0, "--depth", row.depth,
                           "--decode", DECODE_TOKENS, "--streams", row.streams, "--domains", row.domains)

    def prefill(self, row, model):
        return self._steps(row, model, REPETITIONS, "--prefill", row.prompt, "--decode", 0)

    def _steps(self, row, model, repetitions, *arguments):
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            weights = ["--weights", model.scion_weights] if model.scion_weights else []
            self._run(self.directory / "step_bench", model.path, "--threads", self.threads, "--rounds",
                      repetitions, "--json", out.name, *weights, *arguments)
            rounds = json.load(open(out.name))["rounds"]
        figures = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
        return dict(figures, tokens_per_second=figures[row.kind])

    def kv_bytes_touched(self, model, context):
        return 0  # the first block's huge page, which is not worth counting out

    def cache_mib(self, context):
        """The smallest cache that holds every slot's context, with room to spare: 1 MiB holds 16 tokens of a wide model."""
        return max(16, context // 16)

    def serve_command(self, path, port, slots, context):
        return [self.directory / "moe-serve", path, "--http-port", port, "--grpc-port", 0, "--threads", self.threads,
                "--kv-cache-mb", self.cache_mib(context), "--log-level", "warning"]


class LlamaCpp(Engine):
    """llama.cpp's own programs, of which llama-bench warms up before its first repetition."""
    api = load.LlamaApi
    kv_types = ["-ctk", "f16", "-ctv", "f16"]

    def decode(self, row, model):
        if row.streams == 1:
            return self._bench(model, "-p", 0, *self.depth_arguments(row.depth, DECODE_TOKENS))
        context = row.streams * (row.depth + DECODE_TOKENS)
        out = self._run(self.directory / "llama-batched-bench", "-m", model.path, "-t", self.threads, "-c", context,
                        "-b", 2048, "-ub", 512, "-npp", row.depth, "-ntg", DECODE_TOKENS, "-npl", row.streams,
                        *self.kv_types, *self.batched_arguments)
        # The table goes to stdout or stderr, as the version has it.
        return {"tokens_per_second": parse_batched_bench(out.stdout + out.stderr, row.streams)}

    batched_arguments = ()
    bench_arguments = ()
    serve_arguments = ("--no-webui", "--cache-ram", 0)

    def depth_arguments(self, depth, tokens):
        return "-n", tokens, "-d", depth

    def prefill(self, row, model):
        return self._bench(model, "-p", row.prompt, "-n", 0)

    def _bench(self, model, *arguments):
        out = self._run(self.directory / "llama-bench", "-m", model.path, "-t", self.threads, "-r", REPETITIONS, "-o",
                        "json", *self.kv_types, *self.bench_arguments, *arguments)
        return {"tokens_per_second": parse_llama_bench(out.stdout)}

    def serve_command(self, path, port, slots, context):
        return [self.directory / "llama-server", "-m", path, "--host", "127.0.0.1", "--port", port, "-t", self.threads,
                "-np", slots, "-c", context, "--no-warmup", *self.kv_types, *self.serve_arguments]


class IkLlamaCpp(LlamaCpp):
    """ik_llama.cpp: weights repacked at load, as its authors measure."""
    batched_arguments = ("-rtr",)
    bench_arguments = ("-rtr", 1)
    serve_arguments = ("-rtr", "--cache-ram", 0)

    def depth_arguments(self, depth, tokens):
        return ("-n", 0, "-gp", f"{depth},{tokens}") if depth else ("-n", tokens)


def parse_llama_bench(text):
    """tokens/s of the one test in llama-bench -o json: the median of its repetitions."""
    begin = ("\n" + text).index("\n[\n")  # after any warning
    results = json.loads(text[begin:text.rindex("]") + 1])
    if len(results) != 1:
        raise ValueError(f"llama-bench ran {len(results)} tests, not one")
    return float(statistics.median(results[0]["samples_ts"]))


def parse_batched_bench(text, streams):
    """tokens/s of decode in llama-batched-bench's table."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 10 and cells[2] == str(streams):
            return float(cells[7])
    raise ValueError(f"llama-batched-bench printed no row of {streams} streams: {text[-500:]}")


PROGRAMS = ("llama-bench", "llama-batched-bench", "llama-server")


def peer(argument, threads):
    """The engine of NAME=DIR. DIR holds the programs, or bin/ or build/bin/ in it; a name that begins with ik takes
    ik_llama.cpp's options. ValueError says what is missing."""
    name, _, given = argument.partition("=")
    for directory in (pathlib.Path(given), pathlib.Path(given) / "bin", pathlib.Path(given) / "build/bin"):
        if all((directory / program).exists() for program in PROGRAMS):
            return (IkLlamaCpp if name.startswith("ik") else LlamaCpp)(name, directory, threads)
    raise ValueError(f"--peer {argument}: NAME=DIR, with {', '.join(PROGRAMS)} in DIR, DIR/bin or DIR/build/bin")
