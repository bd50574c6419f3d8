"""A real moe-serve process on free loopback ports, and what its /metrics say."""

import os
import pathlib
import queue
import re
import signal
import subprocess
import tempfile
import threading
import time

import httpx

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_TIMEOUT_SECONDS = 120  # a sanitizer build on a busy machine packs weights slowly
READY = re.compile(r"^moe-serve: ready http=(\S+) grpc=(\S+)$")


def bin_directory():
    return pathlib.Path(os.environ.get("SCION_BIN", ROOT / "build/release/bin"))


class Server:
    """Started by the constructor, which returns when the server is ready; ended by stop()."""

    def __init__(self, model, *arguments, binaries=None, http_port=0, grpc_port=0):
        self.stderr_file = tempfile.TemporaryFile(mode="w+", errors="replace")
        self.process = subprocess.Popen(
            [str((binaries or bin_directory()) / "moe-serve"), str(model)]
            + ["--http-port", str(http_port), "--grpc-port", str(grpc_port), *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=self.stderr_file, text=True)
        self._lines = queue.Queue()
        threading.Thread(target=self._read_stdout, daemon=True).start()
        try:
            self._wait_until_ready()
        except Exception:
            self.kill()
            raise

    def _read_stdout(self):
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _wait_until_ready(self):
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            line = self._lines.get(timeout=max(0.001, deadline - time.monotonic()))
            assert line is not None, f"moe-serve ended with {self.process.wait()}: {self.stderr()}"
            if match := READY.match(line):
                self.http, self.grpc = match.groups()
                self.url = f"http://{self.http}"
                return

    def stderr(self):
        self.stderr_file.seek(0)
        return self.stderr_file.read()

    def metrics(self):
        """Name (with labels as written) -> value."""
        text = httpx.get(f"{self.url}/metrics", timeout=10, trust_env=False).text
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def metric(self, name):
        return self.metrics()[name]

    def wait_for(self, condition, seconds, what):
        """Polls until condition(metrics) holds. Returns the seconds that it took."""
        start = time.monotonic()
        while True:
            metrics = self.metrics()
            if condition(metrics):
                return time.monotonic() - start
            if time.monotonic() - start > seconds:
                interesting = {k: v for k, v in metrics.items() if "bucket" not in k and "expert" not in k}
                raise AssertionError(f"not within {seconds} s: {what}; metrics: {interesting}")
            time.sleep(0.005)

    def wait_until_idle(self, seconds):
        return self.wait_for(
            lambda m: m["scion_kv_blocks_in_use"] == m["scion_requests_running"] == m["scion_requests_waiting"] == 0,
            seconds, "no request running or waiting, no KV block in use")

    def assert_answers(self):
        answer = httpx.post(f"{self.url}/v1/completions", json={"prompt": "a", "max_tokens": 2}, timeout=60,
                            trust_env=False)
        assert answer.status_code == 200, answer.text

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, seconds):
        return self.process.wait(timeout=seconds)

    def stop(self):
        """Drains, and checks that the end was clean: exit code 0, no word from a sanitizer."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            code = self.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        stderr = self.stderr()
        assert "Sanitizer" not in stderr and "runtime error" not in stderr, stderr
        assert code == 0, f"moe-serve ended with {code}: {stderr}"

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if error is None:
            self.stop()
        else:
            self.kill()
