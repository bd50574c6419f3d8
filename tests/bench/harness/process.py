"""A server process: started on a free loopback port, asked until it answers, its memory read, ended."""

import contextlib
import http.client
import json
import socket
import subprocess
import tempfile
import time

START_TIMEOUT_SECONDS = 300


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class ServerProcess:
    """Context manager. `command` is a function of the port."""

    def __init__(self, command):
        self.port = free_port()
        self._log = tempfile.TemporaryFile(mode="w+", errors="replace")
        self.started = time.perf_counter()
        self._directory = tempfile.TemporaryDirectory()  # some leave a log file where they stand
        self._process = subprocess.Popen([str(part) for part in command(self.port)], stdout=self._log, stderr=self._log,
                                         cwd=self._directory.name)

    def first_answer(self, path, body):
        """Posts the body until the server answers with 200. Returns the seconds from exec to the end of that answer."""
        data = json.dumps(body)
        while time.perf_counter() - self.started < START_TIMEOUT_SECONDS:
            if self._process.poll() is not None:
                self._log.seek(0)
                raise RuntimeError(f"{self._process.args[0]} ended with {self._process.returncode}: "
                                   f"{self._log.read()[-2000:]}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_TIMEOUT_SECONDS)
                connection.request("POST", path, data, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                connection.close()
                if answer.status == 200:
                    return time.perf_counter() - self.started
                if answer.status not in (503, 404):  # loading; routes not yet there
                    raise RuntimeError(f"{self._process.args[0]} answers {answer.status}")
            time.sleep(0.002)
        raise RuntimeError(f"{self._process.args[0]} did not answer in {START_TIMEOUT_SECONDS} s")

    def peak_memory_bytes(self):
        """VmHWM: the most that was resident at once, shared pages of files counted."""
        with open(f"/proc/{self._process.pid}/status") as status:
            kib = next(line for line in status if line.startswith("VmHWM:")).split()[1]
        return int(kib) * 1024

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._directory.cleanup()
